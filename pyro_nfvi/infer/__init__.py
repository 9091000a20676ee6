"""The fit that takes care of itself, and its result."""

from __future__ import annotations

from pyro_nfvi._train.convergence import StopReason
from pyro_nfvi._train.progress import StepInfo
from pyro_nfvi.infer._fit import Fit, Training
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._nuts import NutsRun
from pyro_nfvi.infer._predict import Predictions
from pyro_nfvi.infer._saving import load
from pyro_nfvi.infer._summary import Row, Summary

__all__ = [
    "Fit",
    "NFVI",
    "NutsRun",
    "Predictions",
    "Row",
    "StepInfo",
    "StopReason",
    "Summary",
    "Training",
    "load",
]
