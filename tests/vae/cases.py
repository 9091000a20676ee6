"""What the tests of the VAE share: small nets, far parameters, a VAE whose evidence is known."""

from __future__ import annotations

import torch
from torch import nn

from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE, Gaussian

SHAPE = (3, 2)
DIM = 3
#: Every family, and the options that issue of papers name.
FLOWS = [
    ("planar*4", {}),
    ("radial*3", {}),
    ("sylvester*2", {"rank": 2}),
    ("sylvester*2", {"kind": "householder"}),
    ("sylvester*2", {"kind": "triangular"}),
    ("iaf*2", {"gate": "sigmoid"}),
    ("iaf*2", {}),
    ("realnvp*2", {}),
    ("nice*2", {}),
    ("nsf*2", {}),
    ("tril", {}),
    ("affine|relu*2", {}),
    ("maf*1|planar*2", {}),
]
NAMES = [f"{flow}{''.join(f'-{v}' for v in options.values())}" for flow, options in FLOWS]


def make(flow="iaf*2", *, context_dim=4, dim=DIM, seed=0, dtype=None, **options):
    """A small VAE; the nets are the same for every flow."""
    torch.manual_seed(seed)
    condition = options.get("condition_dim", 0)
    likelihood = options.get("likelihood", "bernoulli")
    num_params = 1 if likelihood == "bernoulli" else likelihood.num_params
    levels = 0 if getattr(likelihood, "ordered", True) else likelihood.levels
    encoder = DenseEncoder(
        SHAPE, dim, (8,), context_dim=context_dim, condition_dim=condition, levels=levels
    )
    decoder = DenseDecoder(dim, SHAPE, (8,), num_params=num_params, condition_dim=condition)
    vae = FlowVAE(encoder, decoder, dim, context_dim, flow, **options)
    return vae if dtype is None else vae.to(dtype)


def spread(vae, size=0.5, seed=1):
    """Move every parameter far from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter))
    return vae


def images(count=5, seed=2, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return torch.bernoulli(torch.full((count, *SHAPE), 0.5, dtype=dtype), generator=generator)


class LinearEncoder(nn.Module):
    """The exact posterior of the linear Gaussian model, times a factor on the scale."""

    def __init__(self, weight, noise, stretch=1.0):
        super().__init__()
        dim = weight.shape[1]
        precision = torch.eye(dim, dtype=weight.dtype) + weight.T @ weight / noise**2
        # Orthogonal columns: the posterior's covariance is diagonal.
        self.variance = nn.Parameter(1 / precision.diagonal())
        self.map = nn.Parameter((weight / noise**2 / precision.diagonal()).T.contiguous())
        self.stretch = stretch

    def forward(self, x):
        loc = x @ self.map.T
        return loc, self.stretch * self.variance.sqrt().expand_as(loc)


class LinearDecoder(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, z):
        return z @ self.weight.T


def linear_gaussian(stretch=1.0, flow=None, noise=0.5, pixels=4, dim=2, dtype=torch.float64):
    """A VAE with known evidence, N(0, W W' + noise^2 I), and data from it."""
    generator = torch.Generator().manual_seed(7)
    full = torch.randn(pixels, pixels, generator=generator, dtype=dtype)
    basis = torch.linalg.qr(full)[0]
    weight = basis[:, :dim] * torch.tensor([2.0, 0.7], dtype=dtype)[:dim]
    vae = FlowVAE(
        LinearEncoder(weight, noise, stretch),
        LinearDecoder(weight),
        dim,
        flow=flow,
        likelihood=Gaussian(scale=noise),
    ).to(dtype)
    covariance = weight @ weight.T + noise**2 * torch.eye(pixels, dtype=dtype)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(pixels, dtype=dtype), covariance)
    chol = torch.linalg.cholesky(covariance)
    x = torch.randn(20, pixels, generator=generator, dtype=dtype) @ chol.T
    return vae, x, evidence.log_prob(x)
