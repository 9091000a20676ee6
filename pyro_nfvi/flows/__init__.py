"""Flows: bijections with their log-determinants, in torch alone."""

from __future__ import annotations

from pyro_nfvi.flows._affine import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._autoregressive import Autoregressive, iaf, maf
from pyro_nfvi.flows._base import Chain, Flow, Inverse
from pyro_nfvi.flows._block_autoregressive import BlockAutoregressive
from pyro_nfvi.flows._conditioning import FreeParams, HyperNet, ParamFlow
from pyro_nfvi.flows._continuous import Continuous
from pyro_nfvi.flows._coupling import Coupling
from pyro_nfvi.flows._coupling_masks import make_mask
from pyro_nfvi.flows._elementwise import Elementwise
from pyro_nfvi.flows._interop import Adapted, adapt
from pyro_nfvi.flows._low_rank_affine import LowRankAffine
from pyro_nfvi.flows._lu_householder import Householder, LULinear
from pyro_nfvi.flows._monotone_network import MonotoneTransformer
from pyro_nfvi.flows._normalization import ActNorm, BatchNorm
from pyro_nfvi.flows._permutation import Permute
from pyro_nfvi.flows._planar import Planar, PlanarChain
from pyro_nfvi.flows._radial import Radial
from pyro_nfvi.flows._registry import FLOW_NAMES, make_flow
from pyro_nfvi.flows._spline import SplineTransformer
from pyro_nfvi.flows._sylvester import Sylvester
from pyro_nfvi.flows._tail_transform import TailTransformer
from pyro_nfvi.flows._torch_transform import FlowTransform
from pyro_nfvi.flows._transformers import (
    AffineTransformer,
    GatedTransformer,
    ReLUTransformer,
    ShiftTransformer,
    Transformer,
)

__all__ = [
    "ActNorm",
    "Adapted",
    "Affine",
    "AffineTransformer",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Chain",
    "Continuous",
    "Coupling",
    "DiagonalAffine",
    "Elementwise",
    "FLOW_NAMES",
    "Flow",
    "FlowTransform",
    "FreeParams",
    "GatedTransformer",
    "Householder",
    "HyperNet",
    "Inverse",
    "LULinear",
    "LowRankAffine",
    "LowerTriangular",
    "MonotoneTransformer",
    "ParamFlow",
    "Permute",
    "Planar",
    "PlanarChain",
    "Radial",
    "ReLUTransformer",
    "ShiftTransformer",
    "SplineTransformer",
    "Sylvester",
    "TailTransformer",
    "Transformer",
    "adapt",
    "iaf",
    "maf",
    "make_flow",
    "make_mask",
]
