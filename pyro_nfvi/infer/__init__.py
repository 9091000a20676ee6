"""Fits: ``NFVI``, its result ``Fit``, ``load`` for saved ones, and ``Target`` for densities."""

from __future__ import annotations

from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._loading import load
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._target import Target

__all__ = [
    "NFVI",
    "Fit",
    "Target",
    "load",
]
