"""Weights of a mixture whose components are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.recipe import MIXTURE_WEIGHTS
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.diagnostics._importance import ess
from pyro_nfvi.diagnostics._khat import read_tail
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError


def mixture_weights(log_p: Tensor, log_each: Tensor) -> TensorPair:
    r"""Learn the weights with which a mixture of given components is closest to a density.

    There are equally many draws of each component. They are weighted by importance, with the even
    mixture of the components as proposal, and

    .. math:: w_k \leftarrow \sum_i \omega_i\, \frac{w_k q_k(z_i)}{\sum_j w_j q_j(z_i)}

    is repeated: EM for the weights alone, which has one solution, the minimum of
    :math:`KL(p \,\|\, \sum_k w_k q_k)`. A component that fits its mode badly still gets the mass
    of that mode; the weights that maximise the evidence lower bound would give it less. Where
    the importance weights say nothing (k-hat above 1, and less than half of the draws effective),
    :math:`w_k \propto \exp(\text{bound}_k)`.

    Args:
        log_p: Log density at the draws ``(K n,)``, n of each component in turn, in nats, up to a
            constant; -inf where it cannot be evaluated.
        log_each: Log density of every component at every draw ``(K n, K)``.

    Returns:
        Weights ``(K,)``, and their standard errors, from the importance weights alone.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.mixture_weights import mixture_weights
        >>> z = torch.cat([torch.randn(4000) - 9, torch.randn(4000) + 9])
        >>> each = -0.5 * (z.unsqueeze(-1) - torch.tensor([-9.0, 9.0])).square()
        >>> log_p = torch.logsumexp(each + torch.tensor([0.2, 0.8]).log(), -1)
        >>> weights, _ = mixture_weights(log_p, each)
        >>> weights.round(decimals=3).tolist()
        [0.2, 0.8]
    """
    log_p, log_each = log_p.double(), log_each.double()
    count = log_each.shape[-1]
    log_w = log_p - (torch.logsumexp(log_each, -1) - math.log(count))
    log_w = torch.where(log_w < torch.inf, log_w, torch.full_like(log_w, -torch.inf))
    try:
        smoothed = psis(log_w)
        # Weights without a mean say nothing; the bounds of the components are used then.
        usable = read_tail(log_w, smoothed.khat).has_mean or ess(
            log_w
        ) > MIXTURE_WEIGHTS.even_share * len(log_w)
    except WeightError:
        usable = False
    if not usable:
        own = log_each.unflatten(0, (count, -1)).diagonal(dim1=0, dim2=2)
        bounds = (log_p.unflatten(0, (count, -1)).mT - own).mean(0)
        bounds = torch.where(torch.isfinite(bounds), bounds, torch.full_like(bounds, -1e10))
        weights = torch.softmax(bounds, 0).clamp_min(MIXTURE_WEIGHTS.least_weight)
        return weights / weights.sum(), torch.full_like(weights, torch.nan)
    omega = smoothed.log_weights.exp()
    omega = omega / omega.sum()
    log_now = log_each.new_full((count,), -math.log(count))
    share = torch.softmax(log_each, -1)
    for _ in range(MIXTURE_WEIGHTS.steps):
        share = torch.softmax(log_each + log_now, -1)
        new = (omega.unsqueeze(-1) * share).sum(0).clamp_min(MIXTURE_WEIGHTS.least_weight)
        new = new / new.sum()
        moved = float((new - log_now.exp()).abs().max())
        log_now = new.log()
        if moved < MIXTURE_WEIGHTS.tolerance:
            break
    weights = log_now.exp()
    # Each component gave the same number of draws: only their spread within it is noise.
    pull = (omega.unsqueeze(-1) * (share - weights)).unflatten(0, (count, -1))
    error = (pull - pull.mean(1, keepdim=True)).square().sum((0, 1)).sqrt()
    return weights, error
