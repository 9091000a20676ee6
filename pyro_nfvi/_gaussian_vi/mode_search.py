"""Multi-start search for the modes of a density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.density_paths import bent_valleys, valleys
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mixture_weights import mixture_weights
from pyro_nfvi._gaussian_vi.mode_ascent import ascend
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._gaussian_vi.unseen_starts import UnseenStarts, unseen_starts

#: From a point ``(D,)`` and points ``(N, D)`` to those of their images that are nearest to it.
Align: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Modes:
    """Gaussians on the modes that were found, the heaviest first.

    Attributes:
        normals: K Gaussians.
        weights: Their weights as a mixture ``(K,)``, which sum to 1.
        hits: Number of starts that ended in each ``(K,)``.
        num_starts: Number of starts; those in no mode that is kept count here only.
        left_out: Number of modes that were left out for lack of mass.
        finished: True if the search came to its end before the target's budget did.
        top: The highest point ``(D,)`` that any start reached.
        merged: Number of modes that were taken for one with another, or for an image of it.
        left_out_share: Share of the mass of those that were left out.
        unseen: Estimate of modes that no start has met; None where nothing was searched.
    """

    normals: Normals
    weights: Tensor
    hits: Tensor
    num_starts: int
    left_out: int = 0
    finished: bool = True
    top: Tensor | None = None
    merged: int = 0
    left_out_share: float = 0.0
    unseen: UnseenStarts | None = None

    def __len__(self) -> int:
        return len(self.normals)


@dataclass(frozen=True, eq=False)
class FirstEnds:
    """Ends of the first ascents.

    Attributes:
        ends: The ends ``(N, D)``, those of the Gaussian's own starts among them.
        heights: Log densities there ``(N,)``.
        tops: One end in each place, the highest; a valley lies between each two.
        label: Place of each end ``(N,)``; -1 for those that are in none of these.
    """

    ends: Tensor
    heights: Tensor
    tops: Tensor
    label: Tensor


def first_ends(
    target: Target, found: GaussianFit, points: Tensor, *, effort: float = 1.0
) -> FirstEnds:
    """Ascend from points, and group the ends by the valleys between them.

    Args:
        target: The density.
        found: The Gaussian; its starts have ascended already.
        points: Where to start from ``(N, D)``.
        effort: Factor on the number of steps.
    """
    frame = Normals(found.loc[None], found.factor[None])
    usable = found.start_bounds > found.bound - MODE_SEARCH.negligible
    ends, heights = ascend(target, frame, points, _steps(MODE_SEARCH.ascent_steps, effort))
    ascended = found.starts.loc[usable] if bool(usable.any()) else frame.loc
    ends = torch.cat([ends, ascended])
    heights = torch.cat([heights, target(ascended)[0]])
    return FirstEnds(ends, heights, *_places(target, None, ends, heights))


def search_modes(
    target: Target,
    found: GaussianFit,
    points: Tensor,
    *,
    first: FirstEnds | None = None,
    more: Callable[[int], Tensor] | None = None,
    align: Align | None = None,
    effort: float = 1.0,
    generator: torch.Generator | None = None,
) -> Modes:
    r"""Search for modes beside that of a Gaussian which was fitted already.

    Every point ascends the density; end points between which the log density does not fall by more
    than 3 nats, on the straight line, are one place. A Gaussian starts from each place; those whose
    bound is within 10 nats of the best, and which a valley separates, are the modes. More points
    follow, wide around these modes, until a round adds none (four at most). Then modes between
    which a bent path stays high are taken for one, and those of less than a
    hundredth of the mass are left out, unless they are so far away that they move a mean by 0.05 sd
    or an sd by a tenth; and so are spikes (narrower than the heaviest by a factor of 20 in
    each direction) of less than a tenth. Weights are those with which the mixture of the Gaussians
    is closest to the density.

    A log-concave density has one mode here, whatever the points. **A mode that no point
    ascends to is not found**, nor are more than 16: those beyond, and an estimate of what no
    start has met, are in :attr:`Modes.unseen`; where modes are so many,
    :func:`~pyro_nfvi._gaussian_vi.block_mixtures.fit_mode_product` may hold them all. Where the
    target's budget is spent first, the modes that are known by then come back, with
    ``finished=False``.

    Args:
        target: The density.
        found: The Gaussian, with the starts it was chosen from.
        points: Where to start from ``(N, D)``.
        first: Where ascents from these ended, where that is known.
        more: Gives ``n`` further points of the same kind for the rounds after the first.
        align: Moves points ``(N, D)`` to those of their images that are nearest to a point
            ``(D,)``, under a group of maps that leave the density as it is: modes that are images
            of each other then count once.
        effort: Factor on all numbers of steps.
        generator: Source of the noise.

    Cost:
        60 N rows of the density, and a few dozen for each point; some 20,000 more for each mode
        where there are several.

    Source: our own, after the multi-start of Zhang et al. 2022 (Pathfinder), arXiv:2108.03782,
    and the component-wise updates of Arenz et al. 2022, arXiv:2209.11533.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.mode_search import search_modes
        >>> from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(1, dtype=torch.float64)
        >>> weights = torch.tensor([0.3, 0.7]).log()
        >>> def log_density(z):
        ...     apart = -0.5 * (z - torch.tensor([-9.0, 9.0])) ** 2
        ...     return torch.logsumexp(apart + weights, -1)
        >>> target = Target(log_density, x)
        >>> best = fit_gaussian(target, Normals.around(torch.ones(1, 1), 1.0))
        >>> modes = search_modes(target, best, torch.linspace(-20, 20, 9).unsqueeze(-1))
        >>> modes.weights.round(decimals=2).tolist(), modes.num_starts
        ([0.7, 0.3], 58)
    """
    frame = Normals(found.loc[None], found.factor[None])
    whole, target = target, target.within(target.budget.part(MODE_SEARCH.search_time))
    if first is None:
        first = first_ends(target, found, points, effort=effort)
    ends, heights = first.ends, first.heights
    if align is not None:
        ends = align(found.loc, ends)
        heights = target(ends)[0]
    known, hits, count = frame, torch.zeros(1, dtype=torch.long), 0
    weights = torch.ones(1, dtype=torch.float64)
    top = ends[heights.argmax()]
    # Ends in modes for which there was no place, counted and never fitted.
    loose, merged = ends[:0], 0
    for turn in range(MODE_SEARCH.rounds):
        count += len(ends)
        if target.budget.over():
            break
        if turn or align is not None:
            tops, label = _places(target, known.loc if turn else None, ends, heights)
        else:
            tops, label = first.tops, first.label
        if target.budget.over():
            break
        if turn == 0 and len(tops) < 2:
            ended = torch.tensor([int((label == 0).sum())])
            sole = unseen_starts(ended, weights)
            return Modes(frame, weights, ended, count, top=top, unseen=sole)
        before = len(known)
        known, owner, full = _fitted(
            target, known, tops[before if turn else 0 :], effort, generator
        )
        if turn:  # places of modes that were known are these modes
            owner = torch.cat([torch.arange(before), owner])
            full = torch.cat([torch.zeros(before, dtype=torch.bool), full])
        beyond = (label < 0) & torch.isfinite(heights).cpu()
        if len(full):
            beyond = beyond | ((label >= 0) & full[label.clamp_min(0)])
        loose = torch.cat([loose, ends[beyond.to(ends.device)]])
        mode = owner[label[label >= 0]]
        hits = torch.nn.functional.pad(hits, (0, len(known) - len(hits)))
        hits = hits + torch.bincount(mode[mode >= 0], minlength=len(known))
        if (turn > 0 and len(known) == before) or len(known) == 1 or turn == MODE_SEARCH.rounds - 1:
            break
        if turn == 0:  # one bent ridge is the common case
            joined, total = _merged(target, frame, known, hits, generator)
            if len(joined) == 1:
                merged += len(known) - 1
                known, hits = joined, total
                break
        weights = _weights(target, known, generator)
        points = _around(known, weights, MODE_SEARCH.round_points, generator)
        if more is not None:
            points = torch.cat(
                [
                    points[: MODE_SEARCH.round_points // 2],
                    more(MODE_SEARCH.round_points // 2).to(points),
                ]
            )
        ends, heights = ascend(target, frame, points, _steps(MODE_SEARCH.ascent_steps, effort))
        if align is not None:
            ends = align(found.loc, ends)
            heights = target(ends)[0]
    left_out, finished = 0, not target.budget.over()
    target = whole
    if target.budget.over():  # nothing is left to weigh them with
        return Modes(frame, torch.ones_like(weights[:1]), hits[:1], count, 0, False, top)
    fitted = len(known) + merged
    if len(known) > 1:
        known, hits = _merged(target, frame, known, hits, generator)
    if len(known) > 1 and align is not None:
        known, hits = _once(target, known, hits, align, generator)
    merged, dropped_share = fitted - len(known), 0.0
    before_pruning = known, hits, torch.ones(1, dtype=torch.float64)
    if len(known) > 1:
        known, _ = natural_gradient_ascent(
            target, known, num_steps=_steps(MODE_SEARCH.last_steps, effort), generator=generator
        )
        weights = _weights(target, known, generator)
        before_pruning = known, hits, weights
        counts = (weights >= MODE_SEARCH.least_share) | _moving(known, weights)
        keep = (counts & ~_spikes(known, weights)).nonzero().squeeze(-1)
        left_out = len(known) - len(keep)
        dropped_share = float(1 - weights[keep].sum())
        known, hits = known.take(keep), hits[keep]
        weights = weights[keep] / weights[keep].sum()
    else:
        weights = torch.ones(1, dtype=torch.float64)
    unseen = _estimate_unseen(target, *before_pruning, loose, effort, generator)
    order = weights.argsort(descending=True)
    finished = finished and not target.budget.over()
    return Modes(
        known.take(order), weights[order], hits[order], count, left_out, finished, top,
        merged, dropped_share, unseen,
    )  # fmt: skip


def _estimate_unseen(
    target: Target,
    known: Normals,
    hits: Tensor,
    weights: Tensor,
    loose: Tensor,
    effort: float,
    generator: torch.Generator | None,
) -> UnseenStarts:
    """Estimate unseen modes from those that are known and from ends for which was no place.

    The evidence of a mode that is not kept is the bound of a Gaussian that starts there.
    """
    log_evidence = weights.log()
    if not len(loose) or target.budget.over():
        return unseen_starts(hits, log_evidence)
    loose = loose[: MODE_SEARCH.compared_ends]
    heights = target(loose)[0]
    tops, label = _places(target, known.loc, loose, heights, len(loose))
    counts = torch.bincount(label[label >= 0], minlength=len(tops))
    counts[: len(known)] += hits.to(counts)
    if len(tops) == len(known):  # nothing new among them
        return unseen_starts(counts, log_evidence)
    ran, _ = natural_gradient_ascent(
        target,
        _starts_at(known.take(0), tops[len(known) :]),
        num_steps=_steps(MODE_SEARCH.race_steps, effort),
        num_particles=MODE_SEARCH.race_particles,
        generator=generator,
    )
    own, new = _bounds(target, known, generator), _bounds(target, ran, generator)
    first = own.argmax()
    new = (new - own[first] + log_evidence[first].to(new)).to(log_evidence)
    beyond = int((new > log_evidence.max() - MODE_SEARCH.negligible).sum())
    return unseen_starts(counts, torch.cat([log_evidence, new]), beyond)


def _starts_at(frame: Normals, places: Tensor) -> Normals:
    """Make narrow Gaussians at places, of the shape of one Gaussian."""
    factor = frame.factor.expand(len(places), *frame.factor.shape[1:])
    return Normals(places, MODE_SEARCH.start_width * factor)


def _steps(most: int, effort: float) -> int:
    return max(1, round(most * effort))


def _places(
    target: Target,
    tops: Tensor | None,
    ends: Tensor,
    heights: Tensor,
    most: int = MODE_SEARCH.most_places,
) -> tuple[Tensor, Tensor]:
    """Ends without a valley between them are one place: a top of each, and the label of each end.

    Places in ``tops`` come first; an end without a place has label -1.
    """
    label = torch.full((len(ends),), -1, dtype=torch.long)
    left = heights.argsort(descending=True)
    left = left[torch.isfinite(heights[left])]
    found = [] if tops is None else list(tops)
    for place, top in enumerate(found):
        if target.budget.over():
            break
        same = ~valleys(target, top, ends[left], MODE_SEARCH.valley)
        label[left[same]] = place
        left = left[~same]
    known = len(found)
    while len(left) and len(found) < known + most and not target.budget.over():
        top = ends[left[0]]
        same = ~valleys(target, top, ends[left], MODE_SEARCH.valley)
        same[0] = True
        label[left[same]] = len(found)
        found.append(top)
        left = left[~same]
    return torch.stack(found) if found else ends[:0], label


def _fitted(
    target: Target,
    known: Normals,
    places: Tensor,
    effort: float,
    generator: torch.Generator | None,
) -> tuple[Normals, Tensor, Tensor]:
    """Fit a Gaussian from each place.

    Returns:
        The modes, in which of them each place is, and the places whose mode was dropped since as
        many as are kept were there.
    """
    full = torch.zeros(len(places), dtype=torch.bool)
    if not len(places):
        return known, torch.zeros(0, dtype=torch.long), full
    ran, _ = natural_gradient_ascent(
        target,
        _starts_at(known.take(0), places),
        num_steps=_steps(MODE_SEARCH.race_steps, effort),
        num_particles=MODE_SEARCH.race_particles,
        generator=generator,
    )
    both = Normals(torch.cat([known.loc, ran.loc]), torch.cat([known.factor, ran.factor]))
    bounds = _bounds(target, both, generator)
    # So short a race leaves the Gaussians of many dimensions below their best.
    slack = MODE_SEARCH.negligible + known.dim / 2
    kept, owner = list(range(len(known))), torch.full((len(places),), -1, dtype=torch.long)
    # Modes that are known stay; of the others the best come first.
    for index in bounds[len(known) :].argsort(descending=True).tolist():
        if target.budget.over():
            break
        place = len(known) + index
        apart = _apart(target, both, place, kept)
        if bool(apart.all()):
            if float(bounds[place]) > float(bounds.max()) - slack:
                if len(kept) < MODE_SEARCH.most_modes:
                    kept.append(place)
                    owner[index] = len(kept) - 1
                else:
                    full[index] = True
        else:
            owner[index] = int((~apart).nonzero()[0])
            first = kept[int(owner[index])]
            if bounds[place] > bounds[first] + 1.0:  # a Gaussian that lay across several modes
                kept[int(owner[index])] = place
    return both.take(kept), owner, full


def _merged(
    target: Target,
    frame: Normals,
    known: Normals,
    hits: Tensor,
    generator: torch.Generator | None,
) -> tuple[Normals, Tensor]:
    """Leave one Gaussian, the best, of those that a bent ridge joins."""
    bounds = _bounds(target, known, generator)
    left = bounds.argsort(descending=True)
    kept: list[int] = []
    count: list[Tensor] = []
    while len(left):
        if kept and target.budget.over():  # the rest stay as they are
            kept += left.tolist()
            count += list(hits[left])
            break
        kept.append(int(left[0]))
        same = ~bent_valleys(target, frame, known.loc[left[0]], known.loc[left], MODE_SEARCH.valley)
        same[0] = True
        count.append(hits[left[same]].sum())
        left = left[~same]
    return known.take(kept), torch.stack(count)


def _once(
    target: Target,
    known: Normals,
    hits: Tensor,
    align: Align,
    generator: torch.Generator | None,
) -> tuple[Normals, Tensor]:
    """Leave one Gaussian, the best, of those that are images of each other.

    Points near the border of what is nearest to the first Gaussian may have been moved to
    different images.
    """
    bounds = _bounds(target, known, generator)
    left = bounds.argsort(descending=True)
    kept: list[int] = []
    count: list[Tensor] = []
    while len(left):
        if kept and target.budget.over():  # the rest stay as they are
            kept += left.tolist()
            count += list(hits[left])
            break
        place = int(left[0])
        kept.append(place)
        same = ~valleys(
            target, known.loc[place], align(known.loc[place], known.loc[left]), MODE_SEARCH.valley
        )
        same[0] = True
        count.append(hits[left[same]].sum())
        left = left[~same]
    return known.take(kept), torch.stack(count)


def _apart(target: Target, normals: Normals, one: int, others: list[int]) -> Tensor:
    """Tell of each of the others whether a valley separates one Gaussian from it."""
    return valleys(target, normals.loc[one], normals.loc[others], MODE_SEARCH.valley)


def _bounds(target: Target, normals: Normals, generator: torch.Generator | None) -> Tensor:
    """Bounds of Gaussians ``(K,)``, from fewer draws where there is no time for all."""
    rows = target.affordable(MODE_SEARCH.compared_draws * len(normals)) // len(normals)
    return normals.bounds(target, max(MODE_SEARCH.fewest_draws, rows), generator)[0]


def _weights(target: Target, normals: Normals, generator: torch.Generator | None) -> Tensor:
    """Weights of the mixture that is closest to the density; equal ones where time is over."""
    z = normals.points(normals.noise(MODE_SEARCH.weight_draws, generator)).flatten(0, 1)
    log_p = target.log_prob(z)
    if log_p is None:
        return torch.full_like(normals.loc[:, 0], 1 / len(normals))
    return mixture_weights(log_p, normals.log_prob(z))[0]


def _moving(normals: Normals, weights: Tensor) -> Tensor:
    """Mark light Gaussians that move a mean or an sd of the mixture ``(K,)``."""
    variances = normals.covariances.diagonal(dim1=-2, dim2=-1)

    def moments(share: Tensor) -> tuple[Tensor, Tensor]:
        share = (share / share.sum(-1, keepdim=True)).unsqueeze(-1)
        mean = (share * normals.loc).sum(-2)
        away = normals.loc - mean.unsqueeze(-2)
        return mean, (share * (variances + away.square())).sum(-2).sqrt()

    mean, sd = moments(weights)
    others, spread = moments(weights * (1 - torch.eye(len(weights)).to(weights)))
    shift, stretch = (mean - others).abs() / sd, (sd / spread).log().abs()
    moves = (shift > MODE_SEARCH.moved_mean).any(-1) | (
        stretch > math.log(MODE_SEARCH.moved_sd)
    ).any(-1)
    return moves & (weights >= MODE_SEARCH.moving_share * MODE_SEARCH.least_share)


def _spikes(normals: Normals, weights: Tensor) -> Tensor:
    """Mark Gaussians that are light and far narrower than the heaviest ``(K,)``."""
    factor = normals.factor
    scales = factor if factor.dim() == 2 else factor.diagonal(dim1=-2, dim2=-1)
    volume = scales.abs().log().sum(-1)
    least = volume[weights.argmax()] - MODE_SEARCH.spike_width * normals.dim
    return (volume < least) & (weights < MODE_SEARCH.spike_share)


def _around(
    normals: Normals, weights: Tensor, num: int, generator: torch.Generator | None
) -> Tensor:
    """Wide draws around all modes together: Student t with their mean and 1.7 times their sds."""
    centre = (weights[:, None] * normals.loc).sum(0)
    away = normals.loc - centre
    cov = (weights[:, None, None] * normals.covariances).sum(0)
    # Equal weights for the places: light modes show directions as well as heavy ones.
    cov = cov + away.mT @ away / len(normals)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp_min(0).sqrt()
    noise, chi = normals.take(0).noise(num, generator)[0], normals.take(0).noise(num, generator)[0]
    freedom = chi[:, :5].square().mean(-1, keepdim=True).sqrt()
    return centre + MODE_SEARCH.around * (noise / freedom) @ root.mT
