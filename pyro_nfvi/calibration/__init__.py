"""Variational simulation-based calibration of a model and its fit."""

from __future__ import annotations

from pyro_nfvi.calibration._vsbc import vsbc

__all__ = [
    "vsbc",
]
