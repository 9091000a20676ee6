"""Flows: bijections with their log-determinants. Torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._lazy import lazy
from pyro_nfvi.flows._affine import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._autoregressive import Autoregressive
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._block_autoregressive import BlockAutoregressive
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._continuous import Continuous
from pyro_nfvi.flows._coupling import Coupling
from pyro_nfvi.flows._elementwise import Elementwise
from pyro_nfvi.flows._householder import Householder
from pyro_nfvi.flows._interop import adapt
from pyro_nfvi.flows._low_rank_affine import LowRankAffine
from pyro_nfvi.flows._lu_linear import LULinear
from pyro_nfvi.flows._neural_autoregressive import MonotoneTransformer
from pyro_nfvi.flows._normalization import ActNorm, BatchNorm
from pyro_nfvi.flows._permutation import Permute
from pyro_nfvi.flows._planar import Planar
from pyro_nfvi.flows._radial import Radial
from pyro_nfvi.flows._registry import make_flow, register_flow
from pyro_nfvi.flows._spline import SplineTransformer
from pyro_nfvi.flows._sylvester import Sylvester
from pyro_nfvi.flows._transformers import Transformer

if TYPE_CHECKING:
    from pyro_nfvi.flows._circular_spline import CircularSplineTransformer
    from pyro_nfvi.flows._moebius import MoebiusTransformer

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Chain",
    "CircularSplineTransformer",
    "Continuous",
    "Coupling",
    "DiagonalAffine",
    "Elementwise",
    "Flow",
    "Householder",
    "LULinear",
    "LowRankAffine",
    "LowerTriangular",
    "MoebiusTransformer",
    "MonotoneTransformer",
    "ParamFlow",
    "Permute",
    "Planar",
    "Radial",
    "SplineTransformer",
    "Sylvester",
    "Transformer",
    "adapt",
    "make_flow",
    "register_flow",
]

# Imported when they are used: no fit needs them.
__getattr__, __dir__ = lazy(
    __name__,
    {"CircularSplineTransformer": "_circular_spline", "MoebiusTransformer": "_moebius"},
)
