"""Fits: ``NFVI``, its result ``Fit``, ``load`` for saved ones, and ``Target`` for densities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._lazy import lazy

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # which knows the names, and reports others
    __getattr__, __dir__ = lazy(
        __name__, {"NFVI": "_nfvi", "Fit": "_fit", "Target": "_target", "load": "_loading"}
    )
