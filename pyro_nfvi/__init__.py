"""Normalizing-flow variational inference for Pyro: the public names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_nfvi import (
    bases,
    dequantize,
    diagnostics,
    errors,
    flows,
    objectives,
    path_sampler,
    testing,
)
from pyro_nfvi._version import __version__
from pyro_nfvi.arviz import to_arviz
from pyro_nfvi.density import FlowDensity
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
from pyro_nfvi.infer import NFVI, Fit, load, vsbc

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
    "bases",
    "dequantize",
    "diagnostics",
    "errors",
    "flows",
    "load",
    "objectives",
    "path_sampler",
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
