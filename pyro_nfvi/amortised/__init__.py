"""Amortised and likelihood-free inference: one density for all data sets of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._lazy import lazy

if TYPE_CHECKING:
    from pyro_nfvi.amortised._amortise import amortise
    from pyro_nfvi.amortised._amortised_posterior import AmortisedPosterior

__all__ = [
    "AmortisedPosterior",
    "amortise",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__, {"AmortisedPosterior": "_amortised_posterior", "amortise": "_amortise"}
    )
