"""Normalizing-flow variational inference for Pyro: guides, fits and densities.

Importing the package loads next to nothing: a name is imported when it is first used (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi import _parent as _parent  # before PyTorch, whose import takes seconds
from pyro_nfvi._lazy import lazy
from pyro_nfvi._version import __version__ as __version__

if TYPE_CHECKING:
    from pyro_nfvi import amortised as amortised
    from pyro_nfvi import arviz as arviz
    from pyro_nfvi import calibration as calibration
    from pyro_nfvi import diagnostics as diagnostics
    from pyro_nfvi import distributions as distributions
    from pyro_nfvi import errors as errors
    from pyro_nfvi import flows as flows
    from pyro_nfvi import guides as guides
    from pyro_nfvi import infer as infer
    from pyro_nfvi import objectives as objectives
    from pyro_nfvi import plots as plots
    from pyro_nfvi import testing as testing
    from pyro_nfvi import vae as vae
    from pyro_nfvi._engine.cache import clear_cache
    from pyro_nfvi._map_fits.map_fits import map_fits
    from pyro_nfvi._map_fits.spec import FitSpec
    from pyro_nfvi._show_versions import show_versions
    from pyro_nfvi.amortised._amortise import amortise
    from pyro_nfvi.arviz._to_arviz import to_arviz
    from pyro_nfvi.calibration._posterior_sbc import posterior_sbc
    from pyro_nfvi.calibration._vsbc import vsbc
    from pyro_nfvi.distributions._flow_density import FlowDensity
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
    from pyro_nfvi.infer._comparison import compare
    from pyro_nfvi.infer._fit import Fit
    from pyro_nfvi.infer._loading import load
    from pyro_nfvi.infer._nfvi import NFVI
    from pyro_nfvi.infer._target import Target

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
    "amortise",
    "clear_cache",
    "compare",
    "load",
    "map_fits",
    "posterior_sbc",
    "show_versions",
    "to_arviz",
    "vsbc",
]

if not TYPE_CHECKING:  # which knows the names, and reports others
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "AutoCoupling": "guides._named",
            "AutoFlow": "guides._auto_flow",
            "AutoIAF": "guides._named",
            "AutoMixture": "guides._auto_mixture",
            "AutoPlanar": "guides._named",
            "AutoPlateFlow": "guides._auto_plate_flow",
            "AutoRadial": "guides._named",
            "AutoSpline": "guides._named",
            "AutoSylvester": "guides._named",
            "Fit": "infer._fit",
            "FitSpec": "_map_fits.spec",
            "FlowDensity": "distributions._flow_density",
            "NFVI": "infer._nfvi",
            "Target": "infer._target",
            "amortise": "amortised._amortise",
            "clear_cache": "_engine.cache",
            "compare": "infer._comparison",
            "load": "infer._loading",
            "map_fits": "_map_fits.map_fits",
            "posterior_sbc": "calibration._posterior_sbc",
            "show_versions": "_show_versions",
            "to_arviz": "arviz._to_arviz",
            "vsbc": "calibration._vsbc",
        },
        folders={
            "amortised",
            "arviz",
            "calibration",
            "diagnostics",
            "distributions",
            "errors",
            "flows",
            "guides",
            "infer",
            "objectives",
            "plots",
            "testing",
            "vae",
        },
    )
