"""Normalizing-flow variational inference for Pyro: guides, fits and densities."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_nfvi import _parent as _parent  # before PyTorch, whose import takes seconds

# isort: split
# Folders are names of the package as well: ``nfvi.flows.make_flow``.
from pyro_nfvi import diagnostics as diagnostics
from pyro_nfvi import distributions as distributions
from pyro_nfvi import errors as errors
from pyro_nfvi import flows as flows
from pyro_nfvi import objectives as objectives
from pyro_nfvi import testing as testing
from pyro_nfvi._version import __version__ as __version__
from pyro_nfvi.distributions import FlowDensity
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.guides._named import (
    AutoCoupling,
    AutoIAF,
    AutoPlanar,
    AutoRadial,
    AutoSpline,
    AutoSylvester,
)
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._loading import load
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._target import Target

if TYPE_CHECKING:
    from pyro_nfvi import vae as vae
    from pyro_nfvi._engine.cache import clear_cache
    from pyro_nfvi._map_fits.map_fits import map_fits
    from pyro_nfvi._map_fits.spec import FitSpec
    from pyro_nfvi._show_versions import show_versions
    from pyro_nfvi.arviz._to_arviz import to_arviz
    from pyro_nfvi.calibration._vsbc import vsbc

__all__ = [
    "NFVI",
    "AutoCoupling",
    "AutoFlow",
    "AutoIAF",
    "AutoMixture",
    "AutoPlanar",
    "AutoPlateFlow",
    "AutoRadial",
    "AutoSpline",
    "AutoSylvester",
    "Fit",
    "FitSpec",
    "FlowDensity",
    "Target",
    "clear_cache",
    "load",
    "map_fits",
    "show_versions",
    "to_arviz",
    "vsbc",
]

#: Names that are imported when they are first used, so that importing the package stays quick.
_LAZY = {
    "FitSpec": "pyro_nfvi._map_fits.spec",
    "map_fits": "pyro_nfvi._map_fits.map_fits",
    "clear_cache": "pyro_nfvi._engine.cache",
    "show_versions": "pyro_nfvi._show_versions",
    "to_arviz": "pyro_nfvi.arviz._to_arviz",
    "vsbc": "pyro_nfvi.calibration._vsbc",
}


def __getattr__(name: str) -> Any:
    if name == "vae":
        return import_module("pyro_nfvi.vae")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyro_nfvi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "vae"})
