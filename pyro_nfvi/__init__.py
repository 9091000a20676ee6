"""Normalizing-flow variational inference for Pyro: the public names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_nfvi import _parent as _parent  # before PyTorch, whose import takes seconds

# isort: split
from pyro_nfvi import diagnostics, distributions, errors, flows, objectives, testing
from pyro_nfvi._engine.cache import clear_cache
from pyro_nfvi._version import __version__
from pyro_nfvi.arviz import to_arviz
from pyro_nfvi.calibration import vsbc
from pyro_nfvi.distributions import FlowDensity
from pyro_nfvi.guides import (
    AutoCoupling,
    AutoFlow,
    AutoIAF,
    AutoMixture,
    AutoPlanar,
    AutoRadial,
    AutoSpline,
    AutoSylvester,
)
from pyro_nfvi.infer import NFVI, Fit, load

if TYPE_CHECKING:
    from pyro_nfvi import vae

__all__ = [
    "NFVI",
    "AutoCoupling",
    "AutoFlow",
    "AutoIAF",
    "AutoMixture",
    "AutoPlanar",
    "AutoRadial",
    "AutoSpline",
    "AutoSylvester",
    "Fit",
    "FlowDensity",
    "__version__",
    "clear_cache",
    "diagnostics",
    "distributions",
    "errors",
    "flows",
    "load",
    "objectives",
    "testing",
    "to_arviz",
    "vae",
    "vsbc",
]


def __getattr__(name: str) -> Any:
    # The VAE toolkit is imported when it is first used.
    if name == "vae":
        return import_module("pyro_nfvi.vae")
    raise AttributeError(f"module 'pyro_nfvi' has no attribute {name!r}")
