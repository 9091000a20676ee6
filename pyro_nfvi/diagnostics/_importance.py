"""Estimates from importance weights: effective draws, evidence, summaries, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._weights import checked, normalised
from pyro_nfvi.errors import OptionError, ShapeError


def ess(log_weights: Tensor) -> float:
    r"""Effective number of draws, :math:`(\sum w)^2 / \sum w^2`, between 1 and S.

    Args:
        log_weights: Log weights (S,) in nats, raw or smoothed, up to a constant.

    Source: Kong 1992.

    Example:
        >>> import torch
        >>> round(ess(torch.zeros(500)), 6)
        500.0
    """
    return math.exp(-float(torch.logsumexp(2 * normalised(log_weights), 0)))


def log_evidence(log_w: Tensor) -> tuple[float, float]:
    r"""Estimate :math:`\log p(x) = \log E_q[w]` and its standard error, in nats.

    The mean of the raw weights is unbiased for p(x); its logarithm is a lower bound on average.
    The standard error is that of the mean, divided by the mean (delta method), and is itself
    only as good as the weights: where ``khat`` exceeds 0.7 it is too small.

    Args:
        log_w: Raw log weights ``log_p - log_q`` (S,), not normalised, in nats.

    Returns:
        ``(value, se)``; ``se`` is infinite for a single draw.

    Source: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, eq. 8.

    Example:
        >>> import torch
        >>> log_evidence(torch.full((100,), -3.0))
        (-3.0, 0.0)
    """
    log_w = checked(log_w)
    count = len(log_w)
    top = log_w.max()
    relative = (log_w - top).exp()
    mean = relative.mean()
    se = float(relative.std() / mean) / math.sqrt(count) if count > 1 else math.inf
    return float(top + mean.log()), se


def iw_gap(log_w: Tensor) -> float:
    r"""Gap between evidence and ELBO as the draws see it: :math:`\log\bar w - \overline{\log w}`.

    An estimate of KL(q || p), in nats, that is biased low: it is at most ``log S``, and a mode
    that no draw reached does not count. Infinite if a draw has weight 0.

    Args:
        log_w: Log weights (S,) in nats, up to a constant.

    Example:
        >>> import torch
        >>> iw_gap(torch.full((100,), -3.0))
        0.0
    """
    log_w = checked(log_w)
    log_w = log_w - log_w.max()
    gap = log_w.exp().mean().log() - log_w.mean()
    return max(float(gap), 0.0)  # Jensen; rounding aside


def resample(
    log_weights: Tensor,
    num_draws: int,
    *,
    method: Literal["systematic", "multinomial"] = "systematic",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw indices with probabilities in proportion to the weights, in random order.

    Args:
        log_weights: Log weights (S,) in nats, best smoothed by :func:`psis`.
        num_draws: How many indices to draw.
        method: ``"systematic"`` uses one uniform number for all: a draw of probability ``p``
            comes up ``num_draws * p`` times, rounded up or down. ``"multinomial"`` draws
            independently, with more noise.
        generator: Source of randomness, on the CPU; torch's own if None.

    Shape:
        -> indices (num_draws,), int64, on the device of ``log_weights``.

    Source: Douc, Cappe & Moulines 2005, arXiv:cs/0507025, for systematic resampling.

    Example:
        >>> import torch
        >>> resample(torch.tensor([-torch.inf, 0.0]), 3)
        tensor([1, 1, 1])
    """
    if num_draws < 1:
        raise OptionError(f"num_draws must be at least 1; got {num_draws}.")
    weights = normalised(log_weights).exp()
    if method == "multinomial":
        index = torch.multinomial(weights, num_draws, replacement=True, generator=generator)
        return index.to(log_weights.device)
    if method != "systematic":
        raise OptionError(f"method must be 'systematic' or 'multinomial'; got {method!r}.")
    start = torch.rand((), dtype=torch.float64, generator=generator)
    level = (torch.arange(num_draws, dtype=torch.float64) + start) / num_draws
    total = weights.cumsum(0)
    # side="right" never lands on a draw of weight 0; the last sum may fall short of 1 by rounding.
    index = torch.searchsorted(total, level * total[-1], right=True)
    last = int(weights.nonzero()[-1])
    order = torch.randperm(num_draws, generator=generator)
    return index.clamp(max=last)[order].to(log_weights.device)


def weighted_mean(x: Tensor, log_weights: Tensor) -> Tensor:
    """Mean of draws ``x (S, *shape)`` under weights (S,); shape ``(*shape)``.

    A draw of weight 0 is left out, whatever its value.

    Example:
        >>> import torch
        >>> weighted_mean(torch.tensor([1.0, torch.nan]), torch.tensor([0.0, -torch.inf]))
        tensor(1.)
    """
    x, weights = _paired(x, log_weights)
    return torch.tensordot(weights, x, dims=([0], [0]))


def weighted_sd(x: Tensor, log_weights: Tensor) -> Tensor:
    r"""Standard deviation of draws ``x (S, *shape)`` under weights; shape ``(*shape)``.

    The variance is divided by :math:`1 - \sum w^2`, which makes it the usual S - 1 form for
    equal weights. NaN if one draw has all the weight.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 2)
        >>> torch.allclose(weighted_sd(x, torch.zeros(50)), x.std(0), atol=1e-6)
        True
    """
    x, weights = _paired(x, log_weights)
    centred = x - torch.tensordot(weights, x, dims=([0], [0]))
    spread = torch.tensordot(weights, centred.square(), dims=([0], [0]))
    return (spread / (1 - weights.square().sum())).sqrt()


def weighted_quantile(x: Tensor, log_weights: Tensor, q: float | Sequence[float]) -> Tensor:
    """Quantiles of draws ``x (S, *shape)`` under weights (S,).

    Linear between the points (middle of the step of the weighted distribution function, draw),
    constant beyond; for equal weights this is NumPy's ``method="hazen"``.

    Args:
        x: Draws ``(S, *shape)``.
        log_weights: Log weights (S,) in nats.
        q: Probability or probabilities between 0 and 1.

    Shape:
        ``(len(q), *shape)``, or ``(*shape)`` for a single number.

    Example:
        >>> import torch
        >>> weighted_quantile(torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3), 0.5)
        tensor(2.)
    """
    levels = [float(q)] if isinstance(q, (int, float)) else [float(level) for level in q]
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise OptionError(f"Quantiles need probabilities between 0 and 1; got {q!r}.")
    x, weights = _paired(x, log_weights)
    flat, order = x.reshape(len(x), -1).sort(0)
    step = weights[order]
    middle = step.cumsum(0) - step / 2  # (S, N), increasing along the draws
    level = torch.tensor(levels, dtype=middle.dtype, device=middle.device)
    level = level.expand(middle.shape[1], -1).contiguous()
    upper = torch.searchsorted(middle.T.contiguous(), level).T  # (len(q), N)
    left, right = (upper - 1).clamp(min=0), upper.clamp(max=len(x) - 1)
    low, high = middle.gather(0, left), middle.gather(0, right)
    share = torch.where(high > low, (level.T - low) / (high - low), torch.zeros_like(low))
    share = share.clamp(0.0, 1.0)
    value = torch.lerp(flat.gather(0, left), flat.gather(0, right), share.to(flat))
    value = value.reshape(len(levels), *x.shape[1:])
    return value[0] if isinstance(q, (int, float)) else value


def _paired(x: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of positive weight, and their normalised weights in the dtype of the draws."""
    weights = normalised(log_weights).exp().to(x.device)
    if x.dim() == 0 or len(x) != len(weights):
        raise ShapeError(
            f"Draws of shape {tuple(x.shape)} need a leading axis as long as the "
            f"{len(weights)} weights."
        )
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    kept = weights > 0
    return x[kept], weights[kept].to(x.dtype)
