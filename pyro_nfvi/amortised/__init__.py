"""Amortised and likelihood-free inference: one density for all data sets of a model."""

from __future__ import annotations

from pyro_nfvi.amortised._amortise import amortise
from pyro_nfvi.amortised._amortised_posterior import AmortisedPosterior

__all__ = [
    "AmortisedPosterior",
    "amortise",
]
