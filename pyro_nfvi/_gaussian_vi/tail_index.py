"""Tails of marginals from the log density alone: no draw has to lie in the tail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.recipe import TAILS
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream


def tail_indices(
    target: Target,
    draws: Tensor,
    size_of: Callable[[Tensor], Tensor],
    *,
    most_rows: int = 8000,
) -> Tensor:
    r"""Estimate the tail index of the marginal of each number, on either side.

    A density that falls as :math:`|x|^{-(\alpha+1)}` has index :math:`\alpha`: moments of lower
    order than that exist, and no others. The marginal of a number is followed outwards,

    .. math:: \log m(t) = \max_{z_{-i}} \log p(z_i = t, z_{-i}) - \tfrac12 \log\det H_{-i},

    with the others optimised again by Newton's method at every point and integrated by Laplace's
    method, whose error does not grow along a power law. The index is the slope
    :math:`-d \log m_u / du` of the density of :math:`u = \log|x|`, where it has settled.

    Args:
        target: The log density with gradients.
        draws: Draws ``(S, D)`` from an approximation: they say where the body is, no more.
        size_of: ``(N, D) -> (N, D)``: the numbers as the user sees them, ``x_i`` of each ``z_i``.
        most_rows: Rows of the target in one call; numbers beyond that many are left out, those
            whose draws reach least far first.

    Returns:
        ``(D, 2)``: index of the lower and of the upper tail; infinite where it is light or there is
        none, NaN where it could not be found, for lack of time in the target's budget too.

    Cost:
        Some tens of calls of up to ``most_rows`` rows, most rays end after two points.

    Source: Laplace's method for marginals as in Tierney and Kadane 1986, JASA 81, section 3.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> t = torch.distributions.StudentT(3.0)
        >>> target = Target(lambda z: t.log_prob(z).sum(-1), torch.zeros(2))
        >>> found = tail_indices(target, t.sample((1000, 2)), lambda z: z)
        >>> bool((found - 3).abs().max() < 0.3)
        True
    """
    draws = draws[torch.isfinite(draws).all(-1)].double()
    dim = draws.shape[-1]
    found = torch.full((dim, 2), math.inf, dtype=torch.float64, device=draws.device)
    most = max(2, most_rows // (2 * dim))
    kept, left = _rays(draws, size_of, TAILS.begin, torch.arange(TAILS.points), most)
    found.view(-1)[left] = math.nan
    if not len(kept):
        return found
    for place, one in enumerate(_follow(target, draws, kept, _light)):
        slopes = [a - b for a, b in pairwise(one.heights)]
        found[kept.index[place], kept.side[place]] = _settled(slopes)
    return found


def tail_moments(
    target: Target,
    draws: Tensor,
    size_of: Callable[[Tensor], Tensor],
    *,
    most_rows: int = 8000,
) -> Tensor:
    r"""Estimate the sd of each number with the tails that the density has, over that of the draws.

    The conditional mode of the others is followed outwards from the 85 % quantile on either side,
    as by :func:`tail_indices`. The marginal is scaled to the share of the draws that lie beyond, so
    that only its shape counts, and its second moment takes the place of theirs:

    .. math:: r_i^2 = 1 + \sum_{\text{sides}} \big(\beta\, \hat E[(x_i - c_i)^2 \mid
        \text{beyond}] - E_q[(x_i - c_i)^2\, 1_\text{beyond}]\big) / \mathrm{var}_q(x_i)

    The others are integrated out by Laplace's method, and by draws around their mode; the smaller
    ratio counts. The one is off where they are skewed, the other has noise where they are many.
    An approximation whose draws stop short on a bent ridge shows a ratio above 1, however even its
    importance weights are: none of its draws is there.

    Returns:
        ``(D,)``: the ratio; NaN where neither tail could be followed.

    Cost:
        As :func:`tail_indices`, and 32 evaluations more at each point.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> target = Target(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> right = torch.randn(4000, 2)
        >>> short = 1.5 * torch.tanh(right)
        >>> ratios = [tail_moments(target, x, lambda z: z) for x in (right, short)]
        >>> bool((ratios[0] - 1).abs().max() < 0.04), bool(ratios[1].min() > 1.05)
        (True, True)
    """
    draws = draws[torch.isfinite(draws).all(-1)].double()
    dim = draws.shape[-1]
    ratio = torch.full((dim,), math.nan, dtype=torch.float64, device=draws.device)
    steps = TAILS.moment_step * torch.arange(TAILS.moment_points)
    most = max(2, most_rows // (2 * dim))
    kept, _ = _rays(draws, size_of, TAILS.moment_begin, steps, most)
    if not len(kept):
        return ratio
    followed = _follow(target, draws, kept, lambda heights: heights[0] - heights[-1] > TAILS.depth)
    with torch.no_grad():
        seen = size_of(draws).double()
    square = (seen - seen.median(0).values).square()
    sides = (draws > draws.median(0).values).long()
    change = torch.zeros(dim, 2, dtype=torch.float64, device=draws.device)
    noise = _student(dim, stream(0, "tails", device=draws.device)).to(draws)
    seen_rays = [place for place, one in enumerate(followed) if len(one.heights) >= 3]
    marginals = _integrated(
        target, [followed[place] for place in seen_rays], kept.index[seen_rays], noise, most_rows
    )
    for place, by_draws in zip(seen_rays, marginals):
        one, i = followed[place], int(kept.index[place])
        u = kept.log_size[place, : len(one.heights)].unsqueeze(-1)
        beyond = (sides[:, i] == kept.side[place]) & (square[:, i].log() / 2 > u[0])
        by_laplace = torch.tensor(one.heights, dtype=torch.float64, device=draws.device)
        by_draws = by_draws + kept.log_slope[place, : len(u)]
        heights = torch.stack([by_laplace, by_draws], -1)
        density = (heights - heights.max(0).values).exp()
        mass = torch.trapezoid(density, u, dim=0)
        if not bool((mass > 0).all()):
            continue
        second = torch.trapezoid(density * (2 * u).exp(), u, dim=0) / mass
        change[i] += beyond.double().mean() * second - (square[:, i] * beyond).mean()
        ratio[i] = 1.0
    variance = seen.var(0, correction=0)
    return ratio * (1 + change.amin(1) / variance).clamp_min(0).sqrt()


def _light(heights: list[float]) -> bool:
    return len(heights) > 1 and heights[-2] - heights[-1] >= TAILS.light


class _Followed:
    """A ray as far as it was followed: log densities of u, conditional modes, and widths there."""

    def __init__(self) -> None:
        self.heights: list[float] = []
        self.points: list[Tensor] = []
        self.spreads: list[Tensor] = []


class _Rays:
    """Rays ``r`` along coordinate ``index[r]``: points ``at (R, K)``, the longest-tailed first."""

    def __init__(
        self, index: Tensor, side: Tensor, at: Tensor, log_slope: Tensor, log_size: Tensor
    ) -> None:
        self.index, self.side = index, side
        #: Coordinate at each point, log |dt/du| there, and u.
        self.at, self.log_slope, self.log_size = at, log_slope, log_size

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def joined(cls, parts: Sequence[_Rays]) -> _Rays:
        """Join several, in their order; there is at least one."""
        named = ("index", "side", "at", "log_slope", "log_size")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in named))

    def first(self, count: int) -> _Rays:
        parts = (self.index, self.side, self.at, self.log_slope, self.log_size)
        return _Rays(*(part[:count] for part in parts))


def _rays(
    draws: Tensor, size_of: Callable[[Tensor], Tensor], begin: float, steps: Tensor, most: int
) -> tuple[_Rays, Tensor]:
    """Lay out the points of up to ``most`` rays, those whose draws reach far in their spread first.

    Returns:
        The rays, and places in ``(D, 2)``, flat, of those that were left out.
    """
    centre, spread = draws.median(0).values, draws.std(0)
    start = torch.stack(
        [(sign * (draws - centre)).clamp(min=0).quantile(begin, dim=0) for sign in (-1.0, 1.0)], -1
    )
    start = torch.where(start > 0, start, spread[:, None]).clamp(min=1e-300)
    reach = (start / spread[:, None].clamp(min=1e-300)).view(-1)
    order = reach.argsort(descending=True)
    with torch.no_grad():
        middle = size_of(draws).double().median(0).values
    parts, count = list[_Rays](), 0
    for some in order.split(most):
        if count >= most:
            break
        parts.append(
            _laid_out(
                centre, middle, spread, start.view(-1)[some], some // 2, some % 2, size_of, steps
            )
        )
        count += len(parts[-1])
    rays = _Rays.joined(parts)
    seen = sum(len(part) for part in order.split(most)[: len(parts)])
    extra = 2 * rays.index[most:] + rays.side[most:]
    return rays.first(most), torch.cat([order[seen:], extra])


def _laid_out(
    centre: Tensor,
    middle: Tensor,
    spread: Tensor,
    start: Tensor,
    index: Tensor,
    side: Tensor,
    size_of: Callable[[Tensor], Tensor],
    steps: Tensor,
) -> _Rays:
    """Lay out equal steps of log |x - median|; numbers that are bounded have none."""
    dim = len(centre)
    sign = (2 * side - 1).double()

    def size(t: Tensor) -> Tensor:
        """Log size of the seen number where the coordinate of each ray is t ``(R, K)``."""
        rows = centre.expand(*t.shape, dim).clone()
        rows.scatter_(-1, index[:, None, None].expand(*t.shape, 1), t.unsqueeze(-1))
        with torch.no_grad():
            x = size_of(rows.reshape(-1, dim)).double().reshape(rows.shape)
        x = x.gather(-1, index[:, None, None].expand(*t.shape, 1)).squeeze(-1)
        return (x - middle[index, None]).abs().log()

    first = size(centre[index, None] + (sign * start).unsqueeze(-1))
    goals = first + steps.to(centre)
    low = start.unsqueeze(-1).expand_as(goals).clone()
    high = low.clone()
    for _ in range(TAILS.doublings):
        reached = size(centre[index, None] + sign[:, None] * high) >= goals
        if bool(reached.all()):
            break
        high = torch.where(reached, high, 2 * high)
    reached = size(centre[index, None] + sign[:, None] * high) >= goals
    for _ in range(TAILS.bisections):
        half = 0.5 * (low + high)
        below = size(centre[index, None] + sign[:, None] * half) < goals
        low, high = torch.where(below, half, low), torch.where(below, high, half)
    at = centre[index, None] + sign[:, None] * high
    nudge = 1e-5 * high
    rate = (size(at + sign[:, None] * nudge) - size(at - sign[:, None] * nudge)) / (2 * nudge)
    ok = reached.all(-1) & torch.isfinite(rate).all(-1) & (rate > 0).all(-1) & (spread[index] > 0)
    return _Rays(index[ok], side[ok], at[ok], -rate[ok].log(), goals[ok])


def _follow(
    target: Target, draws: Tensor, rays: _Rays, over: Callable[[list[float]], bool]
) -> list[_Followed]:
    """Follow the conditional mode at the points of each ray, until it is over."""
    count = len(rays)
    found = [_Followed() for _ in range(count)]
    active = torch.arange(count, device=draws.device)
    # Each ray begins at the draw of the highest density among those nearest to its first point: a
    # ridge may have a lesser top of the others beside it.
    apart = (draws[:, rays.index] - rays.at[:, 0]).abs()
    near = apart.topk(min(TAILS.nearest, len(draws)), 0, largest=False).indices
    best = target(draws[near])[0].argmax(0)
    points = draws[near.gather(0, best[None]).squeeze(0)].clone()
    spread = draws.std(0).clamp(min=1e-300).expand(count, -1).clone()
    centre = draws.median(0).values
    for k in range(rays.at.shape[1]):
        if target.budget.over():
            break
        index, t = rays.index[active], rays.at[active, k]
        rows = points[active]
        if k:
            rows = _predicted(target, rows, index, t, centre)
        rows = _placed(rows, index, t)
        rows, width, height = _conditional(target, rows, index, spread[active])
        height = height + rays.log_slope[active, k]
        points[active], spread[active] = rows, width
        going = []
        for row, (place, h) in enumerate(zip(active.tolist(), height.tolist())):
            if not math.isfinite(h):
                continue
            one = found[place]
            one.heights.append(h)
            one.points.append(rows[row])
            one.spreads.append(width[row])
            if not over(one.heights):
                going.append(place)
        active = torch.tensor(going, dtype=torch.long, device=draws.device)
        if not len(active):
            break
    return found


def _placed(rows: Tensor, index: Tensor, t: Tensor) -> Tensor:
    return rows.scatter(-1, index.unsqueeze(-1), t.unsqueeze(-1))


def _predicted(target: Target, rows: Tensor, index: Tensor, t: Tensor, centre: Tensor) -> Tensor:
    """Choose where to begin at the next point: where the others were, or further in proportion."""
    before = rows.gather(-1, index.unsqueeze(-1)).squeeze(-1) - centre[index]
    ratio = ((t - centre[index]) / before).unsqueeze(-1)
    tried = torch.stack([_placed(rows, index, t), centre + ratio * (rows - centre)])
    log_p = target(tried)[0]
    best = log_p.argmax(0)
    return tried.gather(0, best[None, :, None].expand(1, *rows.shape)).squeeze(0)


def _conditional(
    target: Target, rows: Tensor, index: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximise over all coordinates but ``index``; return points, widths and log marginals.

    The log marginal is NaN where Newton's method did not arrive: a height on the way to the ridge
    says nothing of the tail.
    """
    rows, spread = rows.clone(), spread.clone()
    log_p, score, _ = target(rows)
    marginal = torch.full_like(log_p, math.nan)
    todo = torch.arange(len(rows), device=rows.device)
    shares = torch.tensor(TAILS.step_shares, dtype=rows.dtype, device=rows.device)[:, None, None]
    for _ in range(TAILS.newton_steps):
        here, width = rows[todo], spread[todo]
        move, width, logdet, decrement = _newton(target, here, score[todo], index[todo], width)
        spread[todo] = width
        arrived = decrement < TAILS.decrement
        marginal[todo[arrived]] = (log_p[todo] - 0.5 * logdet)[arrived]
        logdet = logdet[~arrived]
        todo, here, move = todo[~arrived], here[~arrived], move[~arrived]
        if not len(todo) or target.budget.over():
            break
        tried = here + shares * move
        heights, scores, _ = target(tried)
        best = heights.argmax(0)
        height = heights.gather(0, best[None]).squeeze(0)
        pick = best[None, :, None].expand(1, *here.shape)
        better = height > log_p[todo]
        # Where no part of a step leads higher, this is the top, as far as numbers or a kink allow.
        marginal[todo[~better]] = (log_p[todo] - 0.5 * logdet)[~better]
        todo, pick = todo[better], pick[:, better]
        rows[todo] = tried[:, better].gather(0, pick).squeeze(0)
        score[todo] = scores[:, better].gather(0, pick).squeeze(0)
        log_p[todo] = height[better]
        if not len(todo):
            break
    return rows, spread, marginal


def _newton(
    target: Target, rows: Tensor, score: Tensor, index: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Newton steps with ``index`` held, widths, log determinants and decrements in nats."""
    fixed = torch.nn.functional.one_hot(index, rows.shape[-1]).bool()
    values, vectors = _curvature(target, rows, fixed, spread)
    slope = torch.where(fixed, torch.zeros_like(score), score * spread)
    along = (vectors.transpose(-1, -2) @ slope.unsqueeze(-1)).squeeze(-1)
    move = (vectors @ (along / values).unsqueeze(-1)).squeeze(-1) * spread
    logdet = values.log().sum(-1) - 2 * torch.where(fixed, 0.0, spread.log()).sum(-1)
    inverse = (vectors.square() / values.unsqueeze(-2)).sum(-1).sqrt().clamp(1e-3, 1e3)
    width = torch.where(fixed, spread, spread * inverse)
    return move, width, logdet, 0.5 * (along.square() / values).sum(-1)


def _curvature(
    target: Target, rows: Tensor, fixed: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of the curvature of the others, in units of the widths."""
    dim = rows.shape[-1]
    eye = torch.eye(dim, dtype=rows.dtype, device=rows.device)
    step = (TAILS.difference * spread).unsqueeze(-1)
    ahead, behind = rows.unsqueeze(1) + step * eye, rows.unsqueeze(1) - step * eye
    scores = target(torch.stack([ahead, behind]))[1]
    curvature = -(scores[0] - scores[1]) / (2 * step)
    curvature = 0.5 * (curvature + curvature.transpose(-1, -2))
    # In units of the widths, with the coordinate that is held as a unit of its own.
    scaled = curvature * spread.unsqueeze(-1) * spread.unsqueeze(-2)
    hold = fixed.unsqueeze(-1) | fixed.unsqueeze(-2)
    scaled = torch.where(hold, eye.expand_as(scaled), scaled)
    scaled = torch.where(torch.isfinite(scaled), scaled, eye.expand_as(scaled))
    values, vectors = torch.linalg.eigh(scaled)
    return values.abs().maximum(
        TAILS.eigenvalue_floor * values.abs().amax(-1, keepdim=True)
    ), vectors


def _student(dim: int, generator: torch.Generator) -> Tensor:
    """Noise of a standard Student t distribution ``(M, D)``."""
    count, freedom = TAILS.conditional_draws, TAILS.freedom
    both = torch.randn(
        count, dim + freedom, generator=generator, dtype=torch.float64, device=generator.device
    )
    return both[:, :dim] / both[:, dim:].square().mean(-1, keepdim=True).sqrt()


def _integrated(
    target: Target, rays: Sequence[_Followed], index: Tensor, noise: Tensor, most_rows: int
) -> tuple[Tensor, ...]:
    r"""Log marginals at the points of rays, up to a constant for each, by draws of the others.

    .. math:: \log m(t) = \log \frac1M \sum_m \frac{p(z_i = t, z_{-i}^m)}{g(z_{-i}^m)}

    with g a Student t of the conditional mode and curvature. The noise is common to all points, so
    that their ratios have little of it. Rays for which there is no time are left out.
    """
    found = list[Tensor]()
    each = max(1, most_rows // len(noise))  # points in one call
    counts = [len(ray.points) for ray in rays]
    rows = [torch.stack(ray.points) for ray in rays]
    spreads = [torch.stack(ray.spreads) for ray in rays]
    held = index.repeat_interleave(torch.tensor(counts, dtype=torch.long, device=index.device))
    parts = (
        zip(torch.cat(rows).split(each), torch.cat(spreads).split(each), held.split(each))
        if rays
        else ()
    )
    for some in parts:
        if target.budget.over():
            break
        found.append(_log_marginals(target, *some, noise))
    whole = torch.cat(found) if found else noise.new_zeros(0)
    done = [stop <= len(whole) for stop in itertools.accumulate(counts)]
    return whole[: sum(n for n, ok in zip(counts, done) if ok)].split(counts[: sum(done)])


def _log_marginals(
    target: Target, rows: Tensor, spread: Tensor, index: Tensor, noise: Tensor
) -> Tensor:
    """Integrate all coordinates but ``index`` out around conditional modes ``(N, D)``."""
    others, freedom = rows.shape[-1] - 1, TAILS.freedom
    if not others:
        return target(rows)[0].double()
    fixed = torch.nn.functional.one_hot(index, rows.shape[-1]).bool()
    values, vectors = _curvature(target, rows, fixed, spread)
    away = (noise / values.sqrt().unsqueeze(1)) @ vectors.transpose(-1, -2)
    away = torch.where(fixed.unsqueeze(1), 0.0, away)
    square = ((away @ vectors).square() * values.unsqueeze(1)).sum(-1)
    log_g = -0.5 * (freedom + others) * (square / freedom).log1p()
    log_g = log_g + 0.5 * values.log().sum(-1, keepdim=True)
    log_g = log_g - torch.where(fixed, 0.0, spread.log()).sum(-1, keepdim=True)
    log_p = target(rows.unsqueeze(1) + spread.unsqueeze(1) * away)[0].double()
    return torch.logsumexp(log_p - log_g, 1)


def _settled(slopes: list[float]) -> float:
    """Read the index off the local slopes, from the body outwards."""
    if slopes and slopes[-1] >= TAILS.light:
        return math.inf
    if len(slopes) < 3:
        return math.nan
    last, before, first = slopes[-1], slopes[-2], slopes[-3]
    settled = last - before <= max(TAILS.settled * abs(last), TAILS.shrinking * (before - first))
    index = max(last, 0.0) if settled or last < TAILS.felt else math.inf
    # How far below the body the law begins: what is lost on the way to it, in nats.
    lost = sum(slopes) - len(slopes) * index
    return math.inf if index < TAILS.felt and lost > TAILS.faint else index
