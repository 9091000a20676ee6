"""Fits in ArviZ, beside ``pyro_nfvi.to_arviz``: leave-one-out cross-validation and files."""

from __future__ import annotations

from pyro_nfvi.arviz._loo import loo_approximate
from pyro_nfvi.arviz._netcdf import save_netcdf

__all__ = [
    "loo_approximate",
    "save_netcdf",
]
