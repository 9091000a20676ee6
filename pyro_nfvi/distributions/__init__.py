"""Densities: flows over bases, mixtures, dequantization, stochastic normalizing flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._lazy import lazy
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

if TYPE_CHECKING:
    from pyro_nfvi.distributions._estimator import FlowEstimator
    from pyro_nfvi.distributions._uniform_angles import UniformAngles

__all__ = [
    "Base",
    "DiagonalNormal",
    "FlowDensity",
    "FlowDequantize",
    "FlowEstimator",
    "FullRankNormal",
    "GaussianMixture",
    "Langevin",
    "Logistic",
    "Metropolis",
    "MixtureDensity",
    "PathSampler",
    "StudentT",
    "UniformAngles",
    "UniformDequantize",
]

# Imported when they are used: no fit needs them.
__getattr__, __dir__ = lazy(
    __name__, {"FlowEstimator": "_estimator", "UniformAngles": "_uniform_angles"}
)
