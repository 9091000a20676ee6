"""Flows: bijections with their log-determinants, in torch alone."""

from __future__ import annotations

from pyro_nfvi.flows.actnorm import ActNorm, BatchNorm
from pyro_nfvi.flows.adapt import Adapted, adapt
from pyro_nfvi.flows.autoregressive import Autoregressive, iaf, maf
from pyro_nfvi.flows.base import Chain, Flow, Inverse
from pyro_nfvi.flows.block import BlockAutoregressive
from pyro_nfvi.flows.continuous import Continuous
from pyro_nfvi.flows.coupling import Coupling
from pyro_nfvi.flows.elementwise import Elementwise
from pyro_nfvi.flows.factory import FLOW_NAMES, make_flow
from pyro_nfvi.flows.linear import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows.low_rank import LowRankAffine
from pyro_nfvi.flows.mixing import Householder, LULinear
from pyro_nfvi.flows.monotone import MonotoneKernel
from pyro_nfvi.flows.params import FreeParams, HyperNet, ParamFlow
from pyro_nfvi.flows.permute import Permute
from pyro_nfvi.flows.planar import Planar, PlanarChain
from pyro_nfvi.flows.radial import Radial
from pyro_nfvi.flows.spline import SplineKernel
from pyro_nfvi.flows.sylvester import Sylvester
from pyro_nfvi.flows.tail import TailKernel
from pyro_nfvi.flows.transform import FlowTransform
from pyro_nfvi.flows.univariate import (
    AffineKernel,
    GatedKernel,
    Kernel,
    ReLUKernel,
    ShiftKernel,
)

__all__ = [
    "FLOW_NAMES",
    "ActNorm",
    "Adapted",
    "Affine",
    "AffineKernel",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Chain",
    "Continuous",
    "Coupling",
    "DiagonalAffine",
    "Elementwise",
    "Flow",
    "FlowTransform",
    "FreeParams",
    "GatedKernel",
    "Householder",
    "HyperNet",
    "Inverse",
    "Kernel",
    "LULinear",
    "LowRankAffine",
    "LowerTriangular",
    "MonotoneKernel",
    "ParamFlow",
    "Permute",
    "Planar",
    "PlanarChain",
    "Radial",
    "ReLUKernel",
    "ShiftKernel",
    "SplineKernel",
    "Sylvester",
    "TailKernel",
    "adapt",
    "iaf",
    "maf",
    "make_flow",
]
