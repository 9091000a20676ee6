r"""Convergence of Markov chains: R-hat, nested R-hat and effective sample sizes of many numbers.

All take draws ``(chains, draws, D)`` and return one number for each of the D. R-hat and the sizes
are those of Vehtari et al. 2021, which ArviZ computes for one number at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._recipe import CONVERGENCE
from pyro_nfvi.errors import ShapeError


def rank_rhat(draws: Tensor) -> Tensor:
    r"""Return the rank-normalised split R-hat, the larger of its bulk and its tail form.

    .. math:: \hat R = \sqrt{\frac{(n-1)/n\; W + B/n}{W}}

    of the normal scores of the ranks, once of the draws and once of their distances from the
    median; W and B/n are the variances within half chains of n draws and between their means.

    Args:
        draws: Draws ``(chains, draws, D)``.

    Returns:
        R-hat ``(D,)``; NaN for fewer than four draws a chain, where a draw is not finite, and where
        all draws are the same.

    Cost:
        Two sorts of all draws.

    Raises:
        ShapeError: Not three axes.

    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Bayesian Analysis 16(2), equations
    (4) and (14), section 4.1.

    Example:
        >>> import torch
        >>> from pyro_nfvi._random import stream
        >>> chains = torch.randn(4, 1000, 2, generator=stream(0, "example"))
        >>> chains[0, :, 1] += 3.0
        >>> [round(value, 1) for value in rank_rhat(chains).tolist()]
        [1.0, 1.5]
    """
    halves, usable = _halves(draws)
    if halves is None:
        return usable
    bulk = _rhat(normal_scores(halves))
    folded = (halves - _median(halves.flatten(0, 1))).abs()
    tail = _rhat(normal_scores(folded))
    return torch.where(usable, torch.maximum(bulk, tail), torch.nan)


def nested_rhat(draws: Tensor, superchains: int) -> Tensor:
    r"""Return the nested R-hat: do groups of chains that began at different points agree?

    .. math:: \mathfrak{n}\hat R = \sqrt{1 + B / W}

    B is the variance of the means of the superchains, each of them chains that began at one point,
    and W the mean variance within them, between chains and along them. Where each chain is short, W
    is about the variance of the posterior, and the number tells by how much the place of the start
    is not forgotten, with less noise than R-hat.

    Args:
        draws: Draws ``(chains, draws, D)``, those of a superchain side by side.
        superchains: Number K of superchains, of equally many chains each.

    Returns:
        Nested R-hat ``(D,)``, at least 1; NaN for one superchain, for a single draw in all, where a
        draw is not finite, and where all draws are the same.

    Cost:
        O(chains draws D).

    Raises:
        ShapeError: Not three axes, or chains that do not divide into the superchains.

    Source: Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman 2024, Bayesian Analysis,
    arXiv:2110.13017, definition 3.1.

    Example:
        >>> import torch
        >>> from pyro_nfvi._random import stream
        >>> chains = torch.randn(16, 10, 1, generator=stream(0, "example"))
        >>> round(nested_rhat(chains, 4).item(), 2)
        1.0
        >>> chains[:4] += 3.0
        >>> nested_rhat(chains, 4).item() > 1.5
        True
    """
    draws = _checked(draws)
    if superchains < 1 or len(draws) % superchains:
        raise ShapeError(
            f"nested_rhat needs superchains of equally many chains; got {len(draws)} chains and "
            f"{superchains} superchains. Take a divisor of {len(draws)}."
        )
    groups = draws.unflatten(0, (superchains, -1))
    means = groups.mean(2)  # (K, M, D)
    along = groups.var(2).mean(1) if groups.shape[2] > 1 else means.new_zeros(means[:, 0].shape)
    across = means.var(1) if groups.shape[1] > 1 else torch.zeros_like(along)
    within = (along + across).mean(0)
    if superchains < 2:
        return torch.full_like(within, torch.nan)
    found = (1 + means.mean(1).var(0) / within).sqrt()
    return torch.where(_usable(draws), found, torch.nan)


def bulk_ess(draws: Tensor) -> Tensor:
    """Return the effective sample size of the middle of the distribution, by normal scores.

    Args:
        draws: Draws ``(chains, draws, D)``.

    Returns:
        Sizes ``(D,)``, which exceed the number of draws where they are negatively correlated; NaN
        as for :func:`rank_rhat`.

    Cost:
        One sort and one Fourier transform of all draws.

    Raises:
        ShapeError: Not three axes.

    Source: Vehtari et al. 2021, equations (10) and (13), section 4.3.

    Example:
        >>> import torch
        >>> from pyro_nfvi._random import stream
        >>> chains = torch.randn(4, 1000, 1, generator=stream(0, "example"))
        >>> 3000 < bulk_ess(chains).item() < 5000
        True
    """
    halves, usable = _halves(draws)
    if halves is None:
        return usable
    return torch.where(usable, _ess(normal_scores(halves)), torch.nan)


def tail_ess(draws: Tensor) -> Tensor:
    """Return the smaller effective sample size of the 5 % and the 95 % quantile.

    Args:
        draws: Draws ``(chains, draws, D)``.

    Returns:
        Sizes ``(D,)``; NaN as for :func:`rank_rhat`.

    Cost:
        One sort and two Fourier transforms of all draws.

    Raises:
        ShapeError: Not three axes.

    Source: Vehtari et al. 2021, section 4.3.

    Example:
        >>> import torch
        >>> from pyro_nfvi._random import stream
        >>> chains = torch.randn(4, 1000, 1, generator=stream(0, "example"))
        >>> 2000 < tail_ess(chains).item() < 5000
        True
    """
    halves, usable = _halves(draws)
    if halves is None:
        return usable
    ordered = halves.flatten(0, 1).sort(0).values
    found = []
    for level in CONVERGENCE.tail_levels:
        place = level * (len(ordered) - 1)
        low, share = math.floor(place), place - math.floor(place)
        edge = torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], share)
        below = (halves <= edge).to(halves.dtype)
        varied = (below != below[:1, :1]).flatten(0, 1).any(0)
        found.append(torch.where(varied, _ess(below), torch.nan))
    return torch.where(usable, torch.minimum(*found), torch.nan)


def _checked(draws: Tensor) -> Tensor:
    if draws.dim() != 3:
        raise ShapeError(
            f"Chains are draws (chains, draws, D); got a tensor of shape {tuple(draws.shape)}."
        )
    return draws.detach().double()


def _usable(draws: Tensor) -> Tensor:
    """Numbers that are finite in all draws and not the same in all of them ``(D,)``."""
    flat = draws.flatten(0, 1)
    return flat.isfinite().all(0) & (flat != flat[:1]).any(0)


def _halves(draws: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the half chains ``(2 chains, draws // 2, D)``, and which numbers are usable.

    Without four draws a chain, None and what the caller then returns.
    """
    draws = _checked(draws)
    half = draws.shape[1] // 2
    if half < 2 or not len(draws):
        return None, draws.new_full(draws.shape[2:], torch.nan)
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    return halves, _usable(draws)


def _median(flat: Tensor) -> Tensor:
    """Median of each column; the mean of both middle ones of an even number."""
    low = flat.kthvalue((len(flat) + 1) // 2, 0).values
    return low if len(flat) % 2 else (low + flat.kthvalue(len(flat) // 2 + 1, 0).values) / 2


def normal_scores(x: Tensor) -> Tensor:
    """Return normal scores of the ranks of each column of ``x (chains, draws, D)``.

    Ranks are over all chains; ties get their mean rank. Numbers without a variance have one then.

    Example:
        >>> import torch
        >>> scores = normal_scores(torch.tensor([[[1.0], [9.0], [1.0], [1e9]]]))
        >>> [round(score, 2) for score in scores.flatten().tolist()]
        [-0.63, 0.3, -0.63, 1.05]
    """
    flat = x.flatten(0, 1)
    count = len(flat)
    ordered, order = flat.sort(0)
    place = torch.arange(count, dtype=x.dtype, device=x.device).unsqueeze(-1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, place, 0).cummax(0).values
    last = torch.ones_like(new)
    last[:-1] = new[1:]
    final = torch.where(last, place, count).flip(0).cummin(0).values.flip(0)
    mean = 1 + (first + final) / 2
    # Blom's scores, as Vehtari et al. take them.
    scores = torch.special.ndtri((mean - 3 / 8) / (count + 1 / 4))
    return torch.empty_like(flat).scatter_(0, order, scores).unflatten(0, x.shape[:2])


def _rhat(x: Tensor) -> Tensor:
    """R-hat of half chains ``(chains, n, D)``."""
    n = x.shape[1]
    within = x.var(1).mean(0)
    return ((n - 1) / n + x.mean(1).var(0) / within).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size of half chains ``(chains, n, D)``, by Geyer's monotone sequence."""
    chains, n = x.shape[:2]
    means = x.mean(1)
    # Twice the length, so that the transform does not wrap around.
    spectrum = torch.fft.rfft((x - means.unsqueeze(1)).transpose(1, 2), n=2 * n)
    power = (spectrum.real.square() + spectrum.imag.square()).mean(0)
    covariance = torch.fft.irfft(power, n=2 * n)[:, :n] / n  # (D, n)
    within = covariance[:, :1] * n / (n - 1)
    total = within * (n - 1) / n
    if chains > 1:
        total = total + means.var(0).unsqueeze(-1)
    rho = 1 - (within - covariance) / total
    rho[:, 0] = 1.0
    pairs = rho[:, : n - n % 2].unflatten(-1, (-1, 2)).sum(-1)
    # Initial positive, then monotone: pairs count until the first that is not positive.
    counted = pairs > 0
    # The last lags have too few terms: a sum that has not ended before ends there.
    counted[:, max(0, (n - 1) // 2 - 1) :] = False
    positive = counted.cummin(-1).values
    kept = torch.where(positive, pairs, 0).cummin(-1).values
    # The even lag behind the last pair, where it is positive: less bias for short sums.
    after = positive.sum(-1, keepdim=True)
    even = rho[:, ::2]
    inside = after < even.shape[-1]
    extra = even.gather(-1, after.clamp_max(even.shape[-1] - 1)).clamp_min(0)
    extra = torch.where(inside, extra, 0).squeeze(-1)
    size = chains * n
    time = (2 * kept.sum(-1) - 1 + extra).clamp_min(1 / math.log10(size))
    return size / time
