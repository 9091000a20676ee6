"""Objectives: what a step differentiates and what it reports. Torch only."""

from __future__ import annotations

from pyro_nfvi.objectives._elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives._importance_weighted import ImportanceELBO, RenyiELBO
from pyro_nfvi.objectives._make_objective import make_objective
from pyro_nfvi.objectives._objective import Estimate, LogDensity, Objective
from pyro_nfvi.objectives._schedules import Constant, Cyclic, Linear, Schedule, Tempered
from pyro_nfvi.objectives._tempered import TemperedELBO

__all__ = [
    "Constant",
    "Cyclic",
    "Estimate",
    "ImportanceELBO",
    "Linear",
    "LogDensity",
    "Objective",
    "PathELBO",
    "RenyiELBO",
    "Schedule",
    "Tempered",
    "TemperedELBO",
    "TotalELBO",
    "make_objective",
]
