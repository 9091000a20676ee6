"""Random search for narrow modes: many evaluations of the density, and ascents from the best."""

from __future__ import annotations

import dataclasses
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
    given = RANDOM_SEARCH
    points, shells, scored = _best_points(
        target, known, weights, num_points, wide, chunk, generator
    )
    found = RandomSearch(
        Normals(known.loc[:0], known.factor[:0]), torch.zeros(0, dtype=torch.long), scored
    )
    log_p = _heights(target, points).double() if len(points) else points.new_zeros(0)
    weights = weights.to(known.loc)
    each = given.iterations * given.sizes
    ascents = min(given.ascents, max(given.shells, int(given.ascent_share * scored / each)))
    for _ in range(given.rounds):
        if not len(points) or target.budget.over():
            break
        # With what was found so far, what is still hidden stands out more.
        count = len(found.normals)
        reference = _Reference(
            _both(known, found.normals),
            torch.cat([weights, weights.new_full((count,), 1 / max(1, count))]),
            align,
        )
        level = reference.level(target, len(known), generator)
        chosen = _chosen(reference.above(points, log_p), shells, ascents)
        tops, heights = _ascend(target, known.take(0), points[chosen])
        found = dataclasses.replace(found, num_ascents=found.num_ascents + len(chosen))
        standing = tops[_standing(reference.above(tops, heights) - level)]
        new, hits = _fitted(target, known, reference, standing, level, generator)
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


def _both(one: Normals, other: Normals) -> Normals:
    return Normals(torch.cat([one.loc, other.loc]), torch.cat([one.factor, other.factor]))


@dataclass(frozen=True)
class _Reference:
    """The known part of the density: Gaussians with weights, of which some were just found.

    The weights of these are not known; with a whole share each they hide what lies under them.
    """

    normals: Normals
    weights: Tensor
    align: Align | None

    def above(self, z: Tensor, log_p: Tensor) -> Tensor:
        """Log p - log q, which is the log evidence where the known modes are right."""
        z = z if self.align is None else self.align(self.normals.loc[0], z)
        log_q = torch.logsumexp(self.normals.log_prob(z) + self.weights.log(), -1)
        found = log_p.double() - log_q
        return torch.where(found < torch.inf, found, torch.full_like(found, -torch.inf))

    def level(self, target: Target, count: int, generator: torch.Generator) -> float:
        """Evidence, as draws of the first ``count`` Gaussians see it from below."""
        first = self.normals.take(list(range(count)))
        own = first.points(first.noise(RANDOM_SEARCH.judged, generator)).flatten(0, 1)
        log_w = self.above(own, target(own)[0]).unflatten(0, (count, -1))
        return float((log_w.nan_to_num(neginf=-1e10).mean(-1) * self.weights[:count]).sum())


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


def _heights(target: Target, z: Tensor) -> Tensor:
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
) -> tuple[Tensor, Tensor, int]:
    """Draw and score points; return those that stand out, their shells, and how many there were."""
    given = RANDOM_SEARCH
    kept, shells, scored = [], [], 0
    sources = [(known, weights, 1.0), (known, weights, given.wider)]
    if wide is not None:
        sources.append((wide, weights.new_ones(len(wide)), 1.0))
    pattern = [place for place, share in enumerate(given.shares) for _ in range(share)]
    edges: dict[int, list[float]] = {}
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
        above = _heights(target, z) + 0.5 * radius
        scored += rows
        if place not in edges:
            edges[place] = radius.quantile(radius.new_tensor(given.inner)).tolist()
        low, high = edges[place]
        unit = (given.shells - 2) / max(high - low, 1e-30)
        shell = ((radius - low) * unit + 1).clamp(0, given.shells - 1).long()
        tops = above.new_full((given.shells,), -torch.inf)
        tops = tops.scatter_reduce(0, shell, above, "amax")
        standing = (above >= tops[shell]).nonzero().squeeze(-1)[: 4 * given.shells]
        top = torch.cat([above.topk(min(given.best, rows)).indices, standing]).unique()
        top = top[torch.isfinite(above[top])]
        kept.append(z[top].double())
        shells.append(shell[top])
    if not kept:
        return known.loc[:0], torch.zeros(0, dtype=torch.long), scored
    return torch.cat(kept), torch.cat(shells), scored


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
        found = _heights(target, tried.flatten(0, 1)).view(tried.shape[:-1]).double()
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
