"""Fits of Pyro's models: ``NFVI``, its result ``Fit``, and ``load`` for saved ones."""

from __future__ import annotations

from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._loading import load
from pyro_nfvi.infer._nfvi import NFVI

__all__ = [
    "NFVI",
    "Fit",
    "load",
]
