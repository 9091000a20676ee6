"""Objectives: what a step differentiates and what it reports. Torch only."""

from __future__ import annotations

from pyro_nfvi.objectives.base import Estimate, LogDensity, Objective
from pyro_nfvi.objectives.elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives.names import make_objective

__all__ = ["Estimate", "LogDensity", "Objective", "PathELBO", "TotalELBO", "make_objective"]
