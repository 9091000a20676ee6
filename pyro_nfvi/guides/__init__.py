"""Flow guides: drop-in Pyro autoguides."""

from __future__ import annotations

from pyro_nfvi.guides import conditional as _conditional  # noqa: F401 - registers flows with Pyro
from pyro_nfvi.guides.auto_flow import AutoFlow
from pyro_nfvi.guides.auto_mixture import AutoMixture
from pyro_nfvi.guides.named import (
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
