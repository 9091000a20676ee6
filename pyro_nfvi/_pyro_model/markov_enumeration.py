"""Hidden Markov models of Pyro whose density is evaluated under ``torch.vmap``.

Pyro's own takes a guarded logarithm that ``vmap`` does not know, so that particles would run one
by one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.distributions import DiscreteHMM, Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor


class MarkovSites(Messenger):
    """Gives sites whose distribution is a ``DiscreteHMM`` the same one with a density of ours."""

    def _pyro_post_sample(self, msg: Message) -> None:
        msg["fn"] = _batched(msg["fn"])


class _DiscreteHMM(DiscreteHMM):
    """Pyro's distribution; its log density alone is another computation of the same number."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        observed = self.observation_dist
        # Each observation against each state: the axis of states stands right of time.
        seen = observed.log_prob(value.unsqueeze(-1 - observed.event_dim))
        over_time = log_chain(self.transition_logits + seen.unsqueeze(-2))
        paths = self.initial_logits.unsqueeze(-1) + over_time
        return _log_sum_exp(_log_sum_exp(paths, -1), -1)


def _batched(fn: Any) -> Any:
    """Return a distribution with every ``DiscreteHMM`` in it replaced; itself where there is none.

    A subclass of a user's has a density of its own, and stays.
    """
    if type(fn) is DiscreteHMM:
        other = copy.copy(fn)
        other.__class__ = _DiscreteHMM
        return other
    if isinstance(fn, (Independent, MaskedDistribution)):
        base = _batched(fn.base_dist)
        if base is not fn.base_dist:
            fn = copy.copy(fn)
            fn.base_dist = base
    return fn


def log_chain(log_factors: Tensor) -> Tensor:
    r"""Multiply matrices along time in log space: ``(*b, T, K, K) -> (*b, K, K)``.

    .. math:: \log (M_1 M_2 \cdots M_T), \qquad M_t = \exp(\text{log\_factors}_t)

    In pairs, pairs of pairs and so on, as the product is associative.

    Cost:
        O(T K^3) time and memory, in log2 T steps that are one operation each.

    Source: Sarkka and Garcia-Fernandez 2021, IEEE Trans. Automatic Control 66.

    Example:
        >>> import torch
        >>> steps = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log().expand(5, 2, 2)
        >>> bool((log_chain(steps).exp().sum(-1) - 1).abs().max() < 1e-6)
        True
    """
    while log_factors.shape[-3] > 1:
        count = log_factors.shape[-3]
        first = log_factors[..., 0 : count - 1 : 2, :, :]
        second = log_factors[..., 1:count:2, :, :]
        product = _log_sum_exp(first.unsqueeze(-1) + second.unsqueeze(-3), -2)
        if count % 2:
            product = torch.cat([product, log_factors[..., -1:, :, :]], -3)
        log_factors = product
    return log_factors.squeeze(-3)


def _log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """Log-sum-exp whose gradient is 0, and not NaN, where all terms are -inf."""
    top = x.detach().amax(dim, keepdim=True)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    total = (x - top).exp().sum(dim)
    none = total == 0
    log = torch.where(none, torch.ones_like(total), total).log()
    return torch.where(none, torch.full_like(log, -torch.inf), log) + top.squeeze(dim)
