"""Fits in ArviZ: conversion, leave-one-out cross-validation and files."""

from __future__ import annotations

from pyro_nfvi.arviz._loo import loo_approximate
from pyro_nfvi.arviz._netcdf import save_netcdf
from pyro_nfvi.arviz._to_arviz import to_arviz

__all__ = [
    "loo_approximate",
    "save_netcdf",
    "to_arviz",
]
