"""Normalizing-flow variational inference for Pyro: the public names."""

from __future__ import annotations

from pyro_nfvi import diagnostics, errors, flows, objectives, testing
from pyro_nfvi._version import __version__
from pyro_nfvi.density import FlowDensity
from pyro_nfvi.guides import (
    AutoCoupling,
    AutoFlow,
    AutoIAF,
    AutoPlanar,
    AutoRadial,
    AutoSpline,
    AutoSylvester,
)

__all__ = [
    "AutoCoupling",
    "AutoFlow",
    "AutoIAF",
    "AutoPlanar",
    "AutoRadial",
    "AutoSpline",
    "AutoSylvester",
    "FlowDensity",
    "__version__",
    "diagnostics",
    "errors",
    "flows",
    "objectives",
    "testing",
]
