"""Flow guides: drop-in Pyro autoguides."""

from __future__ import annotations

from pyro_nfvi.guides.auto_flow import AutoFlow
from pyro_nfvi.guides.named import AutoIAF, AutoPlanar, AutoRadial, AutoSylvester

__all__ = ["AutoFlow", "AutoIAF", "AutoPlanar", "AutoRadial", "AutoSylvester"]
