"""``to_arviz``: the result of a fit as ArviZ sees it."""

from __future__ import annotations

from pyro_nfvi.arviz.convert import to_arviz
from pyro_nfvi.arviz.loo import LOO, loo_approximate
from pyro_nfvi.arviz.netcdf import save_netcdf

__all__ = ["LOO", "loo_approximate", "save_netcdf", "to_arviz"]
