"""Modes of another width inside or around known ones, found by importance sampling."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mixture_weights import mixture_weights
from pyro_nfvi._gaussian_vi.mode_ascent import ascend
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import Align, Modes
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.random_search import RandomSearch
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH, NESTED_MASS
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError


def outside_of(
    log_p: Tensor, log_q: Tensor, log_proposal: Tensor, num_q: int, level: float, gap: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Weigh points by the density, and mark those that an approximation leaves out.

    Points are ``num_q`` draws of the approximation and others of the proposals; all are weighted
    by the mixture of both, :math:`p / (\alpha q + (1-\alpha) r)`.

    Args:
        log_p: Log density ``(N,)`` in nats, up to a constant.
        log_q: Log density of the approximation.
        log_proposal: Log density of the proposals.
        num_q: How many of the N points are draws of the approximation.
        level: Bound of the approximation: log of the constant, as its own draws see it.
        gap: How far the bound lies below the constant, as its own draws see it. Weights of an
            approximation that is off everywhere by a little vary, with means of twice the gap
            and variances of twice the gap, and that is nothing outside of it.

    Returns:
        Log weights ``(N,)``, -inf where nothing can be evaluated, and the points outside.
    """
    share = num_q / len(log_p)
    mixture = log_proposal + math.log1p(-share)
    if num_q:
        mixture = torch.logaddexp(log_q + math.log(share), mixture)
    log_w = log_p - mixture
    log_w = torch.where(torch.isfinite(log_w), log_w, torch.full_like(log_w, -torch.inf))
    return log_w, ~(log_p - log_q - level <= NESTED_MASS.outside + 3 * gap) & (log_w > -torch.inf)


def add_nested(
    target: Target,
    modes: Modes,
    proposals: Proposals,
    *,
    searched: RandomSearch | None = None,
    align: Align | None = None,
    effort: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Modes, Proposals]:
    r"""Add modes of another width that hold mass of their own: a spike in a slab, a slab around it.

    The straight way between a narrow mode and a wide one around it need not dip, and ascents from
    everywhere may end in the narrow one, whose mass may be anything: density tells nothing of
    mass. So points of all proposals are weighted by the density, with the balance heuristic, and
    where those outside of the known Gaussians have more than 0.3 % of the mass, a Gaussian with
    their mean and covariance starts from there. It is a mode of its own where it stays apart by
    more than 3 nats on average and differs by 2 nats in the logarithm of its volume.

    Args:
        target: The density.
        modes: What :func:`search_modes` found.
        proposals: Where to look.
        searched: Narrow modes that a random search found, tried first.
        align: Moves points to their images nearest to another, as in :func:`search_modes`.
        effort: Factor on all numbers of steps.
        generator: Source of the noise.

    Returns:
        The modes, and the proposals with what was added to them on the way. Where the target's
        budget was spent first, those that are known by then, with ``finished=False``.

    Cost:
        40 rows of the density for each proposal and 1000 more; for each Gaussian that is tried some
        3000.

    Source: our own; as the component-wise updates of Arenz et al. 2022, arXiv:2209.11533, with
    importance weights in place of local searches.
    """
    known, weights, hits = modes.normals, modes.weights, modes.hits
    count = modes.num_starts
    if searched is not None:
        count += searched.num_ascents
        for place, ascents in enumerate(searched.hits.tolist()):
            if target.budget.over() or len(known) >= MODE_SEARCH.most_modes:
                break
            needle = searched.normals.take(place)
            joined = _joined(target, known, needle, generator, NESTED_MASS.between_found)
            if joined is not None:
                known, weights = joined
                hits = torch.cat([hits, hits.new_tensor([ascents])])
                proposals = proposals + Proposals.of(needle)
    for _ in range(NESTED_MASS.rounds):
        if target.budget.over() or len(known) >= MODE_SEARCH.most_modes:
            break
        found = _unseen(target, known, weights, proposals, align, generator)
        if isinstance(found, Tensor):  # too few points there to say more: look closer
            proposals = proposals + narrow(target, known, found, NESTED_MASS.ascent_steps)
            found = _unseen(target, known, weights, proposals, align, generator)
        if found is None or isinstance(found, Tensor):
            break
        start, landed = found
        steps = max(1, round(NESTED_MASS.steps * effort))
        ran, _ = natural_gradient_ascent(
            target, start, num_steps=steps, num_particles=NESTED_MASS.particles, generator=generator
        )
        joined = None if target.budget.over() else _joined(target, known, ran, generator)
        if joined is None:
            break
        known, weights = joined
        hits = torch.cat([hits, hits.new_tensor([landed])])
        count += NESTED_MASS.proposal_draws * len(proposals)
        proposals = proposals + Proposals.of(ran)
    if target.budget.over():
        modes = dataclasses.replace(modes, finished=False)
    if len(known) == len(modes):
        return modes, proposals
    order = weights.argsort(descending=True)
    made = dataclasses.replace(
        modes,
        normals=known.take(order),
        weights=weights[order],
        hits=hits[order],
        num_starts=count,
    )
    return made, proposals


def narrow(target: Target, known: Normals, point: Tensor, num_steps: int = 0) -> Proposals:
    """Make Gaussians at a point, or where an ascent from it ends, narrower than the first one."""
    frame = known.take(0)
    if num_steps:
        point = ascend(target, frame, point[None], num_steps)[0][0]
    factor = torch.stack([scale * frame.factor[0] for scale in NESTED_MASS.narrow_widths])
    return Proposals.of(Normals(point.expand(len(factor), -1), factor))


def _unseen(
    target: Target,
    known: Normals,
    weights: Tensor,
    proposals: Proposals,
    align: Align | None,
    generator: torch.Generator | None,
) -> tuple[Normals, int] | Tensor | None:
    """Fit a Gaussian to the mass that the known ones leave out, by its mean and covariance.

    Returns:
        The Gaussian and the number of points there; the heaviest point where they are too few;
        None where hardly any mass is left out, or nothing can be concluded.
    """
    counts = (weights * NESTED_MASS.own_draws).round().long().clamp_min(8)
    own = torch.cat(
        [
            known.take(place).points(known.take(place).noise(int(count), generator))[0]
            for place, count in enumerate(counts.tolist())
        ]
    )
    assert generator is not None
    points = torch.cat([own, proposals.draw(NESTED_MASS.proposal_draws, generator)])
    log_p, log_r = target.log_prob(points), proposals.log_prob(points)
    if log_p is None:
        return None
    if align is not None:  # images of what is known are known
        points = align(known.loc[0], points)
    log_q = torch.logsumexp(known.log_prob(points) + weights.to(points).log(), -1)
    log_w0 = (log_p - log_q)[: len(own)]
    ok = torch.isfinite(log_w0)
    if not bool(ok.any()):
        return None
    level = float(log_w0[ok].mean())
    log_w, outside = outside_of(log_p, log_q, log_r, len(own), level)
    if not bool((log_w > -torch.inf).any()):
        return None
    weight = torch.softmax(log_w, 0)
    mass = weight * outside
    share = float(mass.sum())
    if share < NESTED_MASS.least_share:
        return None
    if float(mass.sum() ** 2 / mass.square().sum()) < NESTED_MASS.fewest_points:
        return points[mass.argmax()]
    part, landed = mass / mass.sum(), int((outside[len(own) :]).sum())
    loc = (part.unsqueeze(-1) * points).sum(0)
    away = points - loc
    dim = points.shape[-1]
    variance = (part.unsqueeze(-1) * away.square()).sum(0)
    if not known.is_full:
        return Normals(loc[None], variance.clamp_min(1e-300).sqrt()[None]), landed
    effective = float(1 / part.square().sum())
    cov = away.T @ (part.unsqueeze(-1) * away)
    # Few points leave a covariance without rank: the diagonal has more of a say then.
    shrink = dim / (dim + effective)
    cov = (1 - shrink) * cov + shrink * torch.diag(variance)
    jitter = 1e-10 * variance.mean() * torch.eye(dim, dtype=cov.dtype, device=cov.device)
    tril, failed = torch.linalg.cholesky_ex(cov + jitter)
    return None if int(failed) else (Normals(loc[None], tril[None]), landed)


def _joined(
    target: Target,
    known: Normals,
    new: Normals,
    generator: torch.Generator | None,
    most_between: float = NESTED_MASS.between,
) -> tuple[Normals, Tensor] | None:
    """Add a Gaussian, and learn the weights; None where it is no mode of its own."""
    volume = new.scales.log().sum(-1)
    others = known.scales.log().sum(-1)
    if not bool(torch.isfinite(new.loc).all()) or not bool(torch.isfinite(volume).all()):
        return None
    eps = new.noise(NESTED_MASS.weight_draws, generator)
    draws = new.points(eps)[0]
    apart = (new.log_q(eps)[0].unsqueeze(-1) - known.log_prob(draws)).mean(0)
    close = (volume - others).abs() < NESTED_MASS.volume
    if bool((apart < NESTED_MASS.outside).any()) or bool(close[apart.argmin()]):
        return None
    both = Normals(torch.cat([known.loc, new.loc]), torch.cat([known.factor, new.factor]))
    z = torch.cat([both.points(both.noise(NESTED_MASS.weight_draws, generator)).flatten(0, 1)])
    log_p, each = target.log_prob(z), both.log_prob(z)
    if log_p is None:
        return None
    weights, _ = mixture_weights(log_p, each)
    if float(weights[-1]) < NESTED_MASS.least_share:
        return None
    # The moments with and without it, and what both claim, from the same draws.
    log_w = log_p - torch.logsumexp(each, -1)
    try:
        smoothed = psis(torch.where(torch.isfinite(log_w), log_w, log_w.new_tensor(-torch.inf)))
    except WeightError:
        return both, weights
    weight = smoothed.log_weights.exp()
    weight = weight / weight.sum()
    claim = torch.softmax(each + weights.log(), -1)[:, -1]
    between = float(
        (weight * ((claim > NESTED_MASS.claim) & (claim < 1 - NESTED_MASS.claim))).sum()
    )
    if between > most_between:
        return None
    held = weight * (1 - claim)
    shift, stretch = _moved(z, weight, held / held.sum())
    gained = -math.log1p(-min(float(weights[-1]), 0.999))
    return (
        (both, weights)
        if gained > NESTED_MASS.least_gain
        or shift > MODE_SEARCH.moved_mean
        or stretch > MODE_SEARCH.moved_sd
        else None
    )


def _moved(z: Tensor, all_of_it: Tensor, part: Tensor) -> tuple[float, float]:
    """Return the largest change of a mean, in sds, and of an sd, between two weightings."""
    stats = []
    for weight in (all_of_it, part):
        mean = (weight.unsqueeze(-1) * z).sum(0)
        stats.append((mean, (weight.unsqueeze(-1) * (z - mean).square()).sum(0).sqrt()))
    (mean, sd), (other, spread) = stats
    ratio = (sd / spread.clamp_min(1e-300)).log().abs().exp()
    return float(((mean - other).abs() / sd).max()), float(ratio.max())
