"""Random search for narrow modes: many evaluations of the density, and ascents from the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.density_paths import valleys
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_search import Align
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH, NESTED_MASS, RANDOM_SEARCH
from pyro_nfvi._gaussian_vi.target import Target


@dataclass(frozen=True)
class RandomSearch:
    """Narrow modes that a random search found.

    Attributes:
        normals: A Gaussian on each, in the order in which they were found; possibly none.
        hits: Ascents that ended in each ``(K,)``.
        num_points: Points at which the density was evaluated.
        num_ascents: Points among these that ascended.
    """

    normals: Normals
    hits: Tensor
    num_points: int
    num_ascents: int = 0


def random_search(
    target: Target,
    known: Normals,
    weights: Tensor,
    num_points: int,
    *,
    wide: Normals | None = None,
    chunk: int = 16_384,
    align: Align | None = None,
    generator: torch.Generator,
) -> RandomSearch:
    r"""Search for modes that are too narrow for a few hundred ascents to come near.

    A narrow mode of sd s and any mass of note, in a wide one of sd 1 in D dimensions, is the
    higher of the two within a radius of about :math:`s\sqrt{2 D \log(1/s)}`, and nothing outside
    of this radius points to it. So many draws of the known modes are scored, without gradients;
    those at which the known density is too low by most, overall and in each of eight shells around
    the modes, ascend by gradients with a line search. Where a top stays above the known density by
    more than 3 nats a Gaussian is fitted, and it is a mode if its evidence lower bound, which
    bounds the mass around it from below, is more than a hundredth of the known mass, and the known
    density under it too low by 3 nats on average, and if a Gaussian half as wide again finds
    no further mass. So a place with density and without mass, as the neck of a funnel, is none, and
    neither is a part of a bent ridge.

    A mode that has a share v of the draws within its radius is hit by one of N with probability
    :math:`1 - (1 - v)^N`: 95 % from :math:`v = 3/N` on.

    Args:
        target: The density.
        known: Gaussians on the known modes.
        weights: Their weights ``(K,)``.
        num_points: Points N to score.
        wide: Further Gaussians to draw an eighth of the points from, such as one of the prior's
            width.
        chunk: Points at once; best so many that their numbers stay in a processor's cache.
        align: Moves points to their images nearest to another, as in :func:`search_modes`.
        generator: Source of the noise.

    Cost:
        N rows of the density without gradients; some 22,000 more for the ascents, and where a top
        stands out 3000 gradients for each Gaussian.

    Source: our own; multi-start of Rinnooy Kan and Timmer 1987, doi 10.1007/BF02592070, with
    importance weights for heights.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.random_search import random_search
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> from pyro_nfvi._random import stream
        >>> x = torch.zeros(3)
        >>> spike = Normals.around(torch.full((1, 3), 0.9), 0.05)
        >>> slab = Normals.around(torch.zeros(1, 3), 1.0)
        >>> both = lambda z: torch.logaddexp(spike.log_prob(z), slab.log_prob(z))[:, 0]
        >>> noise = stream(0, "example")
        >>> found = random_search(Target(both, x), slab, torch.ones(1), 50_000, generator=noise)
        >>> found.normals.loc.round(decimals=1).tolist(), found.num_points
        ([[0.9, 0.9, 0.9]], 50000)
    """
    scored = _best_points(target, known, weights, num_points, wide, chunk, generator)
    weights = weights.to(known.loc)

    def log_q(z: Tensor) -> Tensor:
        z = z if align is None else align(known.loc[0], z)
        return torch.logsumexp(known.log_prob(z) + weights.log(), -1)

    own = known.points(known.noise(RANDOM_SEARCH.judged, generator)).flatten(0, 1)
    reference = Approximation(
        log_q,
        target(own)[0] - log_q(own),
        weights.repeat_interleave(RANDOM_SEARCH.judged) / RANDOM_SEARCH.judged,
        None if align is None else lambda z: align(known.loc[0], z),
    )
    points = dataclasses.replace(scored, log_q=log_q(scored.z) if len(scored.z) else scored.log_p)
    return search_from(target, known, reference, points, generator=generator)


@dataclass(frozen=True, eq=False)
class ScoredPoints:
    """The best of many points at which a density was evaluated.

    Attributes:
        z: The points ``(M, D)`` in float64.
        log_p: The log density there.
        log_q: That of the approximation.
        shells: Shell of each around the approximation's middle, the innermost being 0.
        count: Points that were scored in all.
    """

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    shells: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Approximation:
    """An approximation of the density, beside which modes are looked for.

    Attributes:
        log_q: Its log density ``(N, D) -> (N,)``, in float64.
        log_w: Log weights of draws of its own: the evidence, from below.
        shares: Shares of these draws in their mean, with a sum of 1.
        align: Moves points to their images nearest to the approximation.
    """

    log_q: Callable[[Tensor], Tensor]
    log_w: Tensor
    shares: Tensor
    align: Callable[[Tensor], Tensor] | None = None

    @property
    def level(self) -> float:
        """Evidence, as the approximation's own draws see it from below."""
        return float((self.log_w.double().nan_to_num(neginf=-1e10) * self.shares).sum())


def search_from(
    target: Target,
    frame: Normals,
    approximation: Approximation,
    points: ScoredPoints,
    *,
    generator: torch.Generator,
) -> RandomSearch:
    """Ascend from points that stand out of an approximation; fit a Gaussian where a top does.

    Args:
        target: The density.
        frame: Gaussians, of which the first gives directions, and the unit of widths.
        approximation: What is known of the density.
        points: Points that stand out.
        generator: Source of the noise.

    Cost:
        That of :func:`random_search`, less the scoring of its points.
    """
    given = RANDOM_SEARCH
    level = approximation.level
    found = RandomSearch(
        Normals(frame.loc[:0], frame.factor[:0]), torch.zeros(0, dtype=torch.long), points.count
    )
    each = given.iterations * given.sizes
    most = max(given.shells, int(given.ascent_share * points.count / each))
    for _ in range(given.rounds):
        if not len(points.z) or target.budget.over():
            break
        # With what was found so far, what is still hidden stands out more.
        reference = _Reference(approximation, found.normals)
        above = reference.above(points.z, points.log_p, points.log_q)
        chosen = _chosen(above, points.shells, min(given.ascents, most))
        tops, reached = _ascend(target, frame.take(0), points.z[chosen])
        found = dataclasses.replace(found, num_ascents=found.num_ascents + len(chosen))
        standing = tops[_standing(reference.above(tops, reached) - level)]
        new, hits = _fitted(target, frame, reference, standing, level, generator)
        if not len(new):
            break
        found = dataclasses.replace(
            found,
            normals=Normals(
                torch.cat([found.normals.loc, new.loc]),
                torch.cat([found.normals.factor, new.factor]),
            ),
            hits=torch.cat([found.hits, hits]),
        )
    alone = (found.hits > 0).nonzero().squeeze(-1)
    return dataclasses.replace(found, normals=found.normals.take(alone), hits=found.hits[alone])


@dataclass(frozen=True)
class _Reference:
    """The known part of the density: an approximation, and Gaussians that were just found.

    The weights of these are not known; with a whole share together they hide what lies under them.
    """

    approximation: Approximation
    found: Normals

    def above(self, z: Tensor, log_p: Tensor, log_q: Tensor | None = None) -> Tensor:
        """Log p - log q, which is the log evidence where the approximation is right."""
        log_q = self.approximation.log_q(z) if log_q is None else log_q
        if len(self.found):
            align = self.approximation.align
            each = self.found.log_prob(z if align is None else align(z))
            log_q = torch.logaddexp(log_q, torch.logsumexp(each, -1) - math.log(len(self.found)))
        above = log_p.double() - log_q
        return torch.where(above < torch.inf, above, torch.full_like(above, -torch.inf))


def _standing(excess: Tensor) -> Tensor:
    """Indices of tops that stand out of what is known, the highest first."""
    standing = excess > NESTED_MASS.outside
    return excess.masked_fill(~standing, -torch.inf).argsort(descending=True)[: int(standing.sum())]


def _fitted(
    target: Target,
    known: Normals,
    reference: _Reference,
    tops: Tensor,
    level: float,
    generator: torch.Generator,
) -> tuple[Normals, Tensor]:
    """Fit a Gaussian at each place; keep those that hold mass, with the ascents that ended there.

    Of those that do not stand alone the ascents are 0: they only count as known from now on.
    """
    given = RANDOM_SEARCH
    none = Normals(known.loc[:0], known.factor[:0]), torch.zeros(0, dtype=torch.long)
    places: list[Tensor] = []
    hits: list[int] = []
    while len(tops) and len(places) < given.places and not target.budget.over():
        same = ~valleys(target, tops[0], tops, MODE_SEARCH.valley)
        same[0] = True
        places.append(tops[0])
        hits.append(int(same.sum()))
        tops = tops[~same]
    if not places:
        return none
    start, kept = _start(target, known, torch.stack(places), level, generator)
    if not len(kept) or target.budget.over():
        return none
    fitted, _ = natural_gradient_ascent(
        target, start, num_steps=given.steps, num_particles=given.rows, generator=generator
    )
    draws = fitted.points(fitted.noise(given.judged, generator)).flatten(0, 1)
    short = reference.above(draws, target(draws)[0]).view(len(fitted), -1).mean(-1) - level
    bounds, _ = fitted.bounds(target, given.judged, generator)
    good = (bounds > level - given.light) & (short > NESTED_MASS.outside)
    good &= torch.isfinite(fitted.factor).flatten(1).all(-1)
    order = bounds.masked_fill(~good, -torch.inf).argsort(descending=True)[: int(good.sum())]
    fitted, counts = fitted.take(order), torch.tensor(hits)[kept][order]
    return fitted, torch.where(_alone(target, fitted, generator), counts, 0)


def _alone(target: Target, normals: Normals, generator: torch.Generator) -> Tensor:
    """Tell whether a Gaussian half as wide again finds hardly any further mass.

    It does where the density goes on with mass, as from the neck of a funnel towards its mouth.
    """
    given = RANDOM_SEARCH
    wide = Normals(normals.loc, given.halo * normals.factor)
    inner, outer = (
        torch.logsumexp(one.log_weights(target, one.noise(given.around, generator)), -1)
        for one in (normals, wide)
    )
    return (outer - inner).abs() < given.more


def heights(target: Target, z: Tensor) -> Tensor:
    """Log density of rows, without gradients; -inf where it cannot be evaluated."""
    z = z.to(target.dtype)
    try:
        with torch.no_grad():
            log_p = target.log_density(z)
    except (RuntimeError, ValueError, ArithmeticError):  # a row on which the model fails
        log_p = torch.cat([target(part)[0] for part in z.split(256)])
    bad = ~torch.isfinite(log_p)
    return log_p.masked_fill(bad, -torch.inf) if bool(bad.any()) else log_p


def _best_points(
    target: Target,
    known: Normals,
    weights: Tensor,
    num: int,
    wide: Normals | None,
    chunk: int,
    generator: torch.Generator,
) -> ScoredPoints:
    """Draw and score points; return those that stand out, of which log q is not known yet."""
    given = RANDOM_SEARCH
    kept, scored = [], 0
    sources = [(known, weights, 1.0), (known, weights, given.wider)]
    if wide is not None:
        sources.append((wide, weights.new_ones(len(wide)), 1.0))
    pattern = [place for place, share in enumerate(given.shares) for _ in range(share)]
    shells = [Shells() for _ in sources]
    turn = 0
    while scored < num and not target.budget.over():
        rows = min(chunk, num - scored)
        place = min(pattern[turn % len(pattern)], len(sources) - 1)
        turn += 1
        normals, shares, stretch = sources[place]
        one = normals.take(int(torch.multinomial(shares, 1, generator=generator)))
        eps = torch.randn(
            (rows, known.dim), generator=generator, dtype=target.dtype, device=known.loc.device
        )
        if stretch != 1.0:
            eps = stretch * eps
        factor, loc = one.factor[0].to(eps), one.loc[0].to(eps)
        z = loc + (eps @ factor.T if one.is_full else eps * factor)
        radius = eps.square().sum(-1)
        # Log weight up to a constant, with the one Gaussian that the point is from.
        log_p = heights(target, z)
        scored += rows
        index, shell = shells[place].best(log_p + 0.5 * radius, radius)
        kept.append((z[index].double(), log_p[index].double(), shell))
    if not kept:
        none = known.loc[:0, 0]
        return ScoredPoints(known.loc[:0], none, none, none.long(), scored)
    points, log_p, shell = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return ScoredPoints(points, log_p, log_p, shell, scored)


class Shells:
    """Chooses of each chunk of points the best, and the best of each shell by their radius.

    The shells' edges are those of the first chunk.
    """

    def __init__(self) -> None:
        self._edges: tuple[float, float] | None = None

    def best(
        self, above: Tensor, radius: Tensor, num: int = RANDOM_SEARCH.best
    ) -> tuple[Tensor, Tensor]:
        """Return indices of the best points by ``above (N,)``, at least ``num``; their shells."""
        given = RANDOM_SEARCH
        if self._edges is None:
            low, high = radius.quantile(radius.new_tensor(given.inner)).tolist()
            self._edges = low, high
        low, high = self._edges
        unit = (given.shells - 2) / max(high - low, 1e-30)
        shell = ((radius - low) * unit + 1).clamp(0, given.shells - 1).long()
        tops = above.new_full((given.shells,), -torch.inf)
        tops = tops.scatter_reduce(0, shell, above, "amax")
        standing = (above >= tops[shell]).nonzero().squeeze(-1)[: 4 * given.shells]
        index = torch.cat([above.topk(min(num, len(above))).indices, standing]).unique()
        index = index[torch.isfinite(above[index])]
        return index, shell[index]


def _chosen(above: Tensor, shells: Tensor, ascents: int) -> Tensor:
    """Indices of the best of all, and of the best of each shell."""
    given = RANDOM_SEARCH
    half = ascents // 2
    chosen = [above.topk(min(half, len(above))).indices]
    for number in range(given.shells):
        here = (shells == number).nonzero().squeeze(-1)
        chosen.append(here[above[here].topk(min(max(1, half // given.shells), len(here))).indices])
    return torch.cat(chosen).unique()


def _ascend(target: Target, frame: Normals, points: Tensor) -> tuple[Tensor, Tensor]:
    """Ascend by steepest ascent in the coordinates of a Gaussian, each step the best of many."""
    given = RANDOM_SEARCH
    sizes = 0.5 ** torch.arange(given.sizes, dtype=points.dtype, device=points.device)
    best, (height, score, _) = points, target(points)
    for _ in range(given.iterations):
        if target.budget.over():
            break
        slope = torch.nn.functional.normalize(frame.pull(score[None])[0], dim=-1)
        way = frame.stretch(slope[None])[0]
        tried = best + sizes[:, None, None] * way
        found = heights(target, tried.flatten(0, 1)).view(tried.shape[:-1]).double()
        top, size = found.max(0)
        higher = top > height
        if not bool(higher.any()):
            break
        moved = tried[size, torch.arange(len(best), device=best.device)]
        best = torch.where(higher.unsqueeze(-1), moved, best)
        height, score, _ = target(best)
    return best, height


def _start(
    target: Target, known: Normals, places: Tensor, level: float, generator: torch.Generator
) -> tuple[Normals, Tensor]:
    """Gaussians at places, each of the width with the highest bound; which places are kept."""
    given = RANDOM_SEARCH
    frame = known.factor[0]
    widths = torch.tensor(given.widths, dtype=frame.dtype, device=frame.device)
    factor = widths.view((-1,) + (1,) * frame.dim()) * frame
    starts = Normals(
        places.repeat_interleave(len(widths), 0),
        factor.repeat((len(places),) + (1,) * frame.dim()),
    )
    bounds, _ = starts.bounds(target, given.compared, generator)
    bound, width = bounds.view(len(places), -1).max(-1)
    kept = (bound > level - given.hopeless - known.dim).nonzero().squeeze(-1)
    return starts.take(kept * len(widths) + width[kept]), kept
