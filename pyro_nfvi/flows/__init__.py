"""Flows: bijections with their log-determinants, in torch alone."""

from __future__ import annotations

from pyro_nfvi.flows.adapt import Adapted, adapt
from pyro_nfvi.flows.autoregressive import Autoregressive, iaf, maf
from pyro_nfvi.flows.base import Chain, Flow, Inverse
from pyro_nfvi.flows.factory import FLOW_NAMES, make_flow
from pyro_nfvi.flows.linear import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows.params import FreeParams, HyperNet, ParamFlow
from pyro_nfvi.flows.permute import Permute
from pyro_nfvi.flows.planar import Planar, PlanarChain
from pyro_nfvi.flows.radial import Radial
from pyro_nfvi.flows.sylvester import Sylvester
from pyro_nfvi.flows.transform import FlowTransform
from pyro_nfvi.flows.univariate import AffineKernel, GatedKernel, Kernel

__all__ = [
    "FLOW_NAMES",
    "Adapted",
    "Affine",
    "AffineKernel",
    "Autoregressive",
    "Chain",
    "DiagonalAffine",
    "Flow",
    "FlowTransform",
    "FreeParams",
    "GatedKernel",
    "HyperNet",
    "Inverse",
    "Kernel",
    "LowerTriangular",
    "ParamFlow",
    "Permute",
    "Planar",
    "PlanarChain",
    "Radial",
    "Sylvester",
    "adapt",
    "iaf",
    "maf",
    "make_flow",
]
