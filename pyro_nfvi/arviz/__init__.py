"""``to_arviz``: the result of a fit as ArviZ sees it."""

from __future__ import annotations

from pyro_nfvi.arviz._loo import LOO, loo_approximate
from pyro_nfvi.arviz._netcdf import save_netcdf
from pyro_nfvi.arviz._to_arviz import to_arviz

__all__ = [
    "LOO",
    "loo_approximate",
    "save_netcdf",
    "to_arviz",
]
