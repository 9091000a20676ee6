"""Simulation-based calibration of variational fits."""

from __future__ import annotations

from pyro_nfvi.calibration._result import VSBC, CalibrationRow, CalibrationTable, SimulatedFit
from pyro_nfvi.calibration._uniformity_tests import bias_test, width_test
from pyro_nfvi.calibration._vsbc import vsbc

__all__ = [
    "CalibrationRow",
    "CalibrationTable",
    "SimulatedFit",
    "VSBC",
    "bias_test",
    "vsbc",
    "width_test",
]
