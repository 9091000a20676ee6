"""Densities: flows over bases, mixtures, dequantization, stochastic normalizing flows."""

from __future__ import annotations

from pyro_nfvi.distributions._bases import (
    Base,
    DiagonalNormal,
    FullRankNormal,
    GaussianMixture,
    Logistic,
    StudentT,
)
from pyro_nfvi.distributions._dequantization import FlowDequantize, UniformDequantize
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.distributions._stochastic_flow import Langevin, Metropolis, PathSampler

__all__ = [
    "Base",
    "DiagonalNormal",
    "FlowDensity",
    "FlowDequantize",
    "FullRankNormal",
    "GaussianMixture",
    "Langevin",
    "Logistic",
    "Metropolis",
    "MixtureDensity",
    "PathSampler",
    "StudentT",
    "UniformDequantize",
]
