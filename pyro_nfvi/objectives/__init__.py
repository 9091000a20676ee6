"""Objectives: bounds on the log evidence, their gradients, and schedules of weights. Torch only."""

from __future__ import annotations

from pyro_nfvi.objectives._elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives._importance_weighted import ImportanceELBO
from pyro_nfvi.objectives._objective import Estimate, Objective
from pyro_nfvi.objectives._renyi import RenyiELBO
from pyro_nfvi.objectives._schedules import Constant, Cyclic, Linear, Schedule, Tempered
from pyro_nfvi.objectives._tempered import TemperedELBO

__all__ = [
    "Constant",
    "Cyclic",
    "Estimate",
    "ImportanceELBO",
    "Linear",
    "Objective",
    "PathELBO",
    "RenyiELBO",
    "Schedule",
    "Tempered",
    "TemperedELBO",
    "TotalELBO",
]
