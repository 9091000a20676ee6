"""Tests of simulation-based calibration; ``pyro_nfvi.vsbc`` runs them on a model."""

from __future__ import annotations

from pyro_nfvi.calibration._uniformity_tests import bias_test, width_test

__all__ = [
    "bias_test",
    "width_test",
]
