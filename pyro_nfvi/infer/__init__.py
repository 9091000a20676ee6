"""The fit that takes care of itself, and its result."""

from __future__ import annotations

from pyro_nfvi.infer.calibration import VSBC, CalibrationRow, CalibrationTable, SimulatedFit
from pyro_nfvi.infer.fit import Fit, Training
from pyro_nfvi.infer.nfvi import NFVI
from pyro_nfvi.infer.nuts import NutsRun
from pyro_nfvi.infer.predict import Predictions
from pyro_nfvi.infer.progress import StepInfo
from pyro_nfvi.infer.saving import load
from pyro_nfvi.infer.stopping import StopReason
from pyro_nfvi.infer.summary import Row, Summary
from pyro_nfvi.infer.vsbc import vsbc

__all__ = [
    "NFVI",
    "VSBC",
    "CalibrationRow",
    "CalibrationTable",
    "Fit",
    "NutsRun",
    "Predictions",
    "Row",
    "SimulatedFit",
    "StepInfo",
    "StopReason",
    "Summary",
    "Training",
    "load",
    "vsbc",
]
