"""Particles that count, and a surrogate loss from their gradients, for all objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._typing import Counted, Particles, PerParticle, Scalar
from pyro_nfvi.objectives._objective import Estimate


def rows_that_count(*rows: Tensor) -> Counted:
    """Return which particles have finite numbers everywhere, ``(S,)``."""
    good = torch.ones(rows[0].shape[0], dtype=torch.bool, device=rows[0].device)
    for row in rows:
        good = good & torch.isfinite(row).reshape(row.shape[0], -1).all(-1)
    return good


def surrogate_of(
    z: Particles,
    pull: Particles,
    good: Counted,
    count: Tensor,
    params: Sequence[Tensor],
    param_grads: Sequence[Tensor],
    extra: PerParticle | None = None,
) -> Scalar:
    r"""Return a scalar whose gradient is that of the loss, particles left out.

    Args:
        z: Particles (S, D), with a graph.
        pull: Gradient of the loss at each of them, ``(S, D)``, not divided by ``count``.
        good: Which count, ``(S,)``.
        count: What sums over particles are divided by.
        params: Parameters of the target.
        param_grads: Gradients of the target's sum.
        extra: What else each particle adds to the loss, ``(S,)``, with a graph.
    """
    keep = good.unsqueeze(-1)
    pull = torch.where(keep, pull, torch.zeros_like(pull)) / count
    surrogate = (torch.where(keep, z, torch.zeros_like(z)) * pull.detach()).sum()
    if extra is not None:
        surrogate = surrogate + torch.where(good, extra, torch.zeros_like(extra)).sum() / count
    for param, grad in zip(params, param_grads):
        surrogate = surrogate - (param * (grad / count)).sum()
    return surrogate


def estimate_of(
    z: Particles,
    pull: Particles,
    log_w: PerParticle,
    good: Counted,
    params: Sequence[Tensor],
    param_grads: Sequence[Tensor],
    extra: PerParticle | None = None,
) -> Estimate:
    """Return an estimate whose gradient and bound are means over the particles that count."""
    count = good.sum().clamp(min=1)
    surrogate = surrogate_of(z, pull, good, count, params, param_grads, extra)
    kept = torch.where(good, log_w, torch.full_like(log_w, torch.nan)).detach()
    return Estimate(surrogate, kept.nanmean(), kept)
