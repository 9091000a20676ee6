"""Narrow modes that a fitted guide misses: a random search among many of its draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.random_search import (
    Approximation,
    ScoredPoints,
    Shells,
    heights,
    search_from,
)
from pyro_nfvi._gaussian_vi.recipe import NESTED_MASS, RANDOM_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.work_count import work_of_rows
from pyro_nfvi._random import stream
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.infer._checks.label_switching import Scored
from pyro_nfvi.infer._recipe import SEARCH_WORK
from pyro_nfvi.infer._weighted_draws import WeighedDraws


@dataclass(frozen=True)
class Narrow:
    """Narrow modes beside a guide.

    Attributes:
        count: Their number.
        share: Share of the mass that they hold together, at least.
        points: Points at which the density was evaluated.
    """

    count: int
    share: float
    points: int


def narrow_modes(
    density: FlowDensity | NoiseDensity,
    log_joint: LogJoint,
    draws: WeighedDraws,
    seed: int,
    *,
    effort: float = 1.0,
    scored: Scored | None = None,
    align: Callable[[Tensor], Tensor] | None = None,
    budget: Budget = UNLIMITED,
) -> Narrow | None:
    r"""Search among many draws of a guide for modes that it misses.

    The search before training draws from Gaussians; where a posterior bends, as in the mouth of a
    funnel, most of its mass is elsewhere, and the guide's own draws are there. Three quarters of
    the points are such draws, and a quarter comes from base noise 1.5 times as wide; each comes
    with seven neighbours. Ascents
    start from those at which log p - log q is highest, and where a top stands out a Gaussian is
    fitted. It counts under the conditions of :func:`random_search`: its evidence lower bound is
    more than a hundredth of the guide's, the guide's density under it is too low by 3 nats on
    average, and the mass around it stands alone; and most of that mass lies where the guide's
    density is e^3 times too low. So a guide that is right has none.

    Args:
        density: The guide's.
        log_joint: The model's.
        draws: The fit's draws.
        seed: Of the points.
        effort: Share of the work that is done, at most 1.
        scored: The guide's density up to relabellings, where it is not the same.
        align: Moves points to the image in which the guide is.
        budget: Time.

    Returns:
        What was found; None where the search cannot be made: particles are run one by one or on
        mini-batches, or the guide's base takes no generator.

    Cost:
        The work of some 0.2 s, draws of the guide included; ascents a quarter more.
    """
    if not _possible(density, log_joint, draws):
        return None
    noise = stream(seed, "narrow modes of the guide", device=draws.z.device)
    target = Target(log_joint, draws.z, budget=budget)
    points = _best_draws(density, log_joint, target, effort, noise)
    if not len(points.z):
        return Narrow(0, 0.0, points.count)
    frame = _frame(draws.z)
    known = density if scored is None else scored

    def log_q(z: Tensor) -> Tensor:
        with torch.no_grad():
            found = known.log_prob(z.to(draws.z)).double()
        # Where the guide has no density that can be computed, nothing stands out.
        return torch.where(found.isnan(), torch.full_like(found, torch.inf), found)

    own = draws.log_w.double()
    own = own[torch.isfinite(own)]
    approximation = Approximation(log_q, own, torch.full_like(own, 1 / len(own)), align)
    found = search_from(target, frame, approximation, points, generator=noise).normals
    if not len(found):
        return Narrow(0, 0.0, points.count)
    outside = _mass_outside(target, found, approximation, noise)
    outside = outside[outside > SEARCH_WORK.least_share]
    mass = float(outside.sum())
    return Narrow(len(outside), mass / (1 + mass), points.count)


def _mass_outside(
    target: Target, modes: Normals, approximation: Approximation, noise: torch.Generator
) -> Tensor:
    """Mass of each mode ``(K,)``, relative to the guide's, where its density is e^3 times too low.

    0 where that is less than half of the mode: one that the guide holds for the most part, such as
    a ring that a flow has to cut somewhere, is no mode that it misses.
    """
    eps = modes.noise(RANDOM_SEARCH.around, noise)
    z = modes.points(eps)
    log_p = target(z)[0]
    log_w = log_p - modes.log_q(eps) - math.log(eps.shape[-2]) - approximation.level
    short = log_p - approximation.log_q(z.flatten(0, 1)).view_as(log_p) - approximation.level
    weight = log_w.clamp_max(100.0).exp()
    outside = (weight * (short > NESTED_MASS.outside)).sum(-1)
    return torch.where(outside > 0.5 * weight.sum(-1), outside, 0.0)


def _possible(
    density: FlowDensity | NoiseDensity, log_joint: LogJoint, draws: WeighedDraws
) -> bool:
    if log_joint.in_parts or not draws.exact:
        return False
    drawn = all(part.takes_generator for part in _parts(density))
    return drawn and bool(torch.isfinite(draws.log_w).sum() > 1)


def _parts(density: FlowDensity | NoiseDensity) -> list[FlowDensity | NoiseDensity]:
    if not isinstance(density, MixtureDensity):
        return [density]
    return [part for part in density.parts if isinstance(part, FlowDensity)]


def _best_draws(
    density: FlowDensity | NoiseDensity,
    log_joint: LogJoint,
    target: Target,
    effort: float,
    noise: torch.Generator,
) -> ScoredPoints:
    """Draw from the guide as many points as the work allows; keep those that stand out."""
    given = SEARCH_WORK
    parts, weights = _parts(density), torch.ones(1)
    if isinstance(density, MixtureDensity):
        weights = density.log_weights.detach().exp().cpu()
    most = max(1, min(given.pushed_rows, given.cache // max(1, log_joint.size)))
    work = _work(parts[0], log_joint, most, noise)
    num = 0 if work is None else int(min(effort * given.last / work, given.most))
    kept = []
    done = turn = 0
    shells = [[Shells(), Shells()] for _ in parts]
    while done < num and not target.budget.over():
        # One component at a time, so that a chunk takes one push and hardly any inverse.
        place = int(torch.multinomial(weights, 1, generator=noise)) if len(parts) > 1 else 0
        wide = turn % 4 == 3
        eps = parts[place].sample_base(max(2, min(most, num - done)), generator=noise)
        eps = RANDOM_SEARCH.wider * eps if wide else eps
        with torch.no_grad():
            z, log_q = parts[place].push(eps)
        # Neighbours of a draw cost the model's work and not the guide's: they are apart by
        # differences of draws, made small enough that the guide's density is about the same.
        near = [z]
        for step in range(1, given.neighbours + 1):
            near.append(z + given.nearness * (z.roll(step, 0) - z.roll(-step, 0)))
        log_p = torch.cat([heights(target, one) for one in near]).double()
        every = torch.cat(near)
        above = log_p - log_q.repeat(len(near)) - float(weights[place].log())
        above = torch.where(above < torch.inf, above, torch.full_like(above, -torch.inf))
        radius = eps.square().sum(-1).double().repeat(len(near))
        index, shell = shells[place][wide].best(above, radius, given.rescored)
        if len(index):
            with torch.no_grad():
                exact = density.log_prob(every[index]).double()
            kept.append((every[index].double(), log_p[index], exact, shell))
        done += len(every)
        turn += 1
    if not kept:
        none = torch.zeros(0, dtype=torch.float64, device=target.device)
        return ScoredPoints(none.view(0, log_joint.latent.dim), none, none, none.long(), done)
    z, log_p, log_q, shell = (torch.cat(columns) for columns in zip(*kept, strict=True))
    return ScoredPoints(z, log_p, log_q, shell, done)


def _work(
    part: FlowDensity | NoiseDensity, log_joint: LogJoint, rows: int, noise: torch.Generator
) -> float | None:
    """Work of a point, of draws and their neighbours; None where the model cannot be run."""
    eps = part.sample_base(rows, generator=noise)
    with torch.no_grad():
        z = part.push(eps)[0]
    push = work_of_rows(lambda e: part.push(e)[0], eps) / rows
    try:
        work = work_of_rows(lambda points: log_joint(points, {}), z) / rows
    except (RuntimeError, ValueError, ArithmeticError):
        return None
    work += push / (1 + SEARCH_WORK.neighbours)
    return work + SEARCH_WORK.own + SEARCH_WORK.own_dim * log_joint.latent.dim


def _frame(z: Tensor) -> Normals:
    """Gaussian with the median and the covariance of draws, of which tails do not count."""
    z = z.double()
    z = z[torch.isfinite(z).all(-1)]
    low, middle, high = z.quantile(z.new_tensor([0.25, 0.5, 0.75]), 0)
    # Half the distance between the quartiles is 0.674 sds.
    sd = (0.741 * (high - low)).clamp_min(1e-10)
    if len(z) > 10 * z.shape[-1]:
        inner = middle + (z - middle).clamp(-3 * sd, 3 * sd)
        factor, failed = torch.linalg.cholesky_ex(torch.cov(inner.T).reshape(len(sd), len(sd)))
        if not int(failed):
            return Normals(middle[None], factor[None])
    return Normals(middle[None], sd[None])
