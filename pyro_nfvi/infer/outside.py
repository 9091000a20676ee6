"""Is there posterior mass where the guide has none? Asked with draws of its own, from far out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi.density import FlowDensity
from pyro_nfvi.infer.draws import WeighedDraws
from pyro_nfvi.logjoint import LogJoint
from pyro_nfvi.mixture import MixtureDensity

__all__ = ["WIDE_ROWS", "mass_outside", "too_much"]

#: Degrees of freedom of the wide proposal, its scales relative to the draws, and rows of each.
_FREEDOM, _SCALES, _ROWS = 3.0, (1.0, 3.0, 10.0), 700
#: Rows of the model that it takes.
WIDE_ROWS = _ROWS * len(_SCALES)
#: Most latents: with more, wide draws say nothing.
_DIM = 30
#: A point lies outside where the guide's density is too low by this many nats.
_SHORT = 3.0
#: Fewest effective draws from which anything is concluded.
_FEWEST = 60
#: Share of the posterior's mass that a guide may leave out and still be trusted.
_OUTSIDE = 0.02


def mass_outside(
    density: FlowDensity | MixtureDensity, log_joint: LogJoint, draws: WeighedDraws, seed: int
) -> tuple[float, float] | None:
    r"""Estimate the share of the posterior's mass where the guide's density is e^3 times too low.

    Importance sampling from a mixture of Student t distributions with the draws' mean and one,
    three and ten times their spread. It sees tails and modes beyond the guide's own draws; in
    many dimensions its own weights fail, and nothing is said.

    Returns:
        The share and its standard error; None where nothing can be concluded.

    Cost:
        2100 rows of the model and of the guide's inverse.
    """
    z = draws.z.double()
    dim = z.shape[-1]
    unfit = bool(log_joint.subsampled) or log_joint.how == "loop"
    if dim > _DIM or unfit or not draws.exact or draws.num_bad:
        return None
    centre = z.mean(0)
    tril, failed = torch.linalg.cholesky_ex(torch.cov(z.T).reshape(dim, dim))
    if int(failed):
        return None
    noise = stream(seed, "outside", device=z.device)
    rows = _ROWS * len(_SCALES)
    normal = torch.randn(rows, dim, generator=noise, dtype=z.dtype, device=z.device)
    parts = torch.randn(rows, int(_FREEDOM), generator=noise, dtype=z.dtype, device=z.device)
    scale = torch.tensor(_SCALES, dtype=z.dtype, device=z.device).repeat_interleave(_ROWS)
    unit = normal / (parts.square().mean(-1, keepdim=True)).sqrt() * scale.unsqueeze(-1)
    points = (centre + unit @ tril.T).to(draws.z)
    try:
        with torch.no_grad():
            log_p = log_joint(points, {}).double()
            log_q = density.log_prob(points).double()
    except (RuntimeError, ValueError):  # a model that cannot be run so far out
        return None
    log_w = log_p - _log_t_mixture(unit, tril)
    log_w = torch.where(torch.isfinite(log_w), log_w, torch.full_like(log_w, -torch.inf))
    if not bool((log_w > -torch.inf).any()):
        return None
    weight = torch.softmax(log_w, 0)
    effective = 1 / float(weight.square().sum())
    if effective < _FEWEST:
        return None
    # The level of log p - log q is the evidence, which the guide's own draws know.
    level = draws.elbo()[0]
    outside = ~(log_p - log_q - level <= _SHORT) & (log_p > -torch.inf)
    share = float(weight[outside].sum())
    return share, math.sqrt(max(share * (1 - share), 0.25 / effective) / effective)


def too_much(outside: Sequence[float] | None) -> bool:
    """Whether a share of the mass, with its standard error, is more than a guide may leave out."""
    return outside is not None and outside[0] - 2 * outside[1] > _OUTSIDE


def _log_t_mixture(unit: Tensor, tril: Tensor) -> Tensor:
    """Log density of the proposal at points that stand at ``unit`` in the draws' coordinates."""
    dim, free = unit.shape[-1], _FREEDOM
    constant = (
        math.lgamma((free + dim) / 2) - math.lgamma(free / 2) - 0.5 * dim * math.log(free * math.pi)
    ) - float(tril.diagonal().log().sum())
    square = unit.square().sum(-1)
    parts = [
        constant - dim * math.log(s) - 0.5 * (free + dim) * torch.log1p(square / (free * s * s))
        for s in _SCALES
    ]
    return torch.logsumexp(torch.stack(parts), 0) - math.log(len(parts))
