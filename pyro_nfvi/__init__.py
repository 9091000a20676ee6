"""Normalizing-flow variational inference for Pyro: the public names."""

from __future__ import annotations

from pyro_nfvi import errors, flows
from pyro_nfvi._version import __version__
from pyro_nfvi.density import FlowDensity
from pyro_nfvi.guides import AutoFlow, AutoIAF, AutoPlanar, AutoRadial, AutoSylvester

__all__ = [
    "AutoFlow",
    "AutoIAF",
    "AutoPlanar",
    "AutoRadial",
    "AutoSylvester",
    "FlowDensity",
    "__version__",
    "errors",
    "flows",
]
