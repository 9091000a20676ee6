"""Fits in ArviZ: conversion, cross-validation and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._lazy import lazy

if TYPE_CHECKING:
    from pyro_nfvi.arviz._loo import loo_approximate as loo_approximate
    from pyro_nfvi.arviz._moment_matching import loo_moment_match as loo_moment_match
    from pyro_nfvi.arviz._netcdf import save_netcdf as save_netcdf
    from pyro_nfvi.arviz._refits import loo_kfold as loo_kfold
    from pyro_nfvi.arviz._refits import reloo as reloo
    from pyro_nfvi.arviz._to_arviz import to_arviz as to_arviz

__all__ = [
    "loo_approximate",
    "loo_kfold",
    "loo_moment_match",
    "reloo",
    "save_netcdf",
    "to_arviz",
]

# Refits import the package of many fits, which imports a module of this one.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "loo_approximate": "_loo",
            "loo_kfold": "_refits",
            "loo_moment_match": "_moment_matching",
            "reloo": "_refits",
            "save_netcdf": "_netcdf",
            "to_arviz": "_to_arviz",
        },
    )
