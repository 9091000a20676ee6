"""Flow guides: drop-in Pyro autoguides."""

from __future__ import annotations

from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._named import (
    AutoCoupling,
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
    "AutoMixture",
    "AutoPlanar",
    "AutoRadial",
    "AutoSpline",
    "AutoSylvester",
]
