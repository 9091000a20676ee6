"""Weights, bound and gradient factors of importance-weighted bounds, for objectives and the VAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalised_weights(log_w: Tensor, good: Tensor, alpha: float = 0.0) -> Tensor:
    r"""Return :math:`\bar w_k \propto w_k^{1-\alpha}` of each row, ``(*b, K) -> (*b, K)``.

    Args:
        log_w: Log importance weights.
        good: Which of them count ``(*b, K)``; the others have weight 0.
        alpha: Order of Rényi's bound; 0 is the importance-weighted one.

    Example:
        >>> import torch
        >>> log_w = torch.tensor([[0.0, 0.0, torch.nan]])
        >>> normalised_weights(log_w, log_w.isfinite()).tolist()
        [[0.5, 0.5, 0.0]]
    """
    scaled, top = _scaled(log_w, good, alpha)
    mass = torch.where(good, (scaled - top).exp(), torch.zeros_like(log_w))
    total = mass.sum(-1, keepdim=True)
    # Where no draw counts the total is 0, and so are they all.
    return mass / torch.where(total == 0, torch.ones_like(total), total)


def renyi_bound(log_w: Tensor, good: Tensor, alpha: float = 0.0) -> Tensor:
    r"""Return :math:`\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}`, ``(*b, K) -> (*b,)``.

    In nats; NaN where no draw counts. The limit at ``alpha=1`` is the mean of the log weights.

    Source: Li and Turner 2016, arXiv:1602.02311, equation 8.
    """
    count = good.sum(-1)
    if alpha == 1:
        total = torch.where(good, log_w, torch.zeros_like(log_w)).sum(-1)
        return total / torch.where(count > 0, count, torch.nan)
    scaled, top = _scaled(log_w, good, alpha)
    mass = torch.where(good, (scaled - top).exp(), torch.zeros_like(log_w)).sum(-1)
    # A draw that is left out has weight 0, and is still one of the K.
    value = (mass.log() + top.squeeze(-1) - math.log(log_w.shape[-1])) / (1 - alpha)
    return torch.where(count > 0, value, torch.full_like(value, torch.nan))


def doubly_reparametrised(weights: Tensor, alpha: float = 0.0) -> Tensor:
    r"""Return the factor of the path gradient of each draw, :math:`\alpha + (1-\alpha)\bar w_k`.

    The gradient through draw k is :math:`\bar w_k` times this times that of
    :math:`\log p - \log q` at a held q.

    Source: Tucker et al. 2019, arXiv:1810.04152, equation 8; Daudel et al. 2023, arXiv:2210.06226.
    """
    return alpha + (1 - alpha) * weights


def _scaled(log_w: Tensor, good: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return logs of the weights to the power 1 - alpha, and the largest of each row, finite."""
    scaled = (1 - alpha) * torch.where(good, log_w, torch.zeros_like(log_w))
    low = torch.where(good, scaled, torch.full_like(scaled, -torch.inf))
    top = low.amax(-1, keepdim=True)
    return scaled, torch.where(torch.isfinite(top), top, torch.zeros_like(top))
