"""Simulation-based calibration of a model and its fit, over the prior or at one data set."""

from __future__ import annotations

from pyro_nfvi.calibration._posterior_sbc import posterior_sbc
from pyro_nfvi.calibration._vsbc import vsbc

__all__ = [
    "posterior_sbc",
    "vsbc",
]
