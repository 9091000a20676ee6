"""Objectives: what a step differentiates and what it reports. Torch only."""

from __future__ import annotations

from pyro_nfvi.objectives.base import Estimate, LogDensity, Objective
from pyro_nfvi.objectives.elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives.names import make_objective
from pyro_nfvi.objectives.renyi import ImportanceELBO, RenyiELBO
from pyro_nfvi.objectives.schedules import Constant, Cyclic, Linear, Schedule, Tempered
from pyro_nfvi.objectives.tempered import TemperedELBO

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
