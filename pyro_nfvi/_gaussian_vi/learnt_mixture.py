"""A mixture of Gaussians learnt from importance weights, with as many components as it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import BLOCK_MIXTURES, NESTED_MASS

#: Log density of points ``(N, d)``: ``(N,)`` in nats, -inf where it cannot be evaluated.
LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LearntMixture:
    """A mixture of K Gaussians, and how far it is from the density.

    Attributes:
        log_weights: ``(K,)``, with a sum of weights of 1.
        locs: Means ``(K, d)``.
        factors: Lower triangular factors of the covariances ``(K, d, d)``.
        gap: Nats between evidence and bound, on draws of its own.
        num_points: Points that were scored.
    """

    log_weights: Tensor
    locs: Tensor
    factors: Tensor
    gap: float
    num_points: int


@dataclass(frozen=True, eq=False)
class _State:
    log_weights: Tensor
    normals: Normals

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.normals.log_prob(z) + self.log_weights, -1)

    def __len__(self) -> int:
        return len(self.normals)


def learn_mixture(
    log_density: LogDensity,
    log_evidence: Tensor,
    normals: Normals,
    aim: float,
    generator: torch.Generator,
) -> LearntMixture:
    r"""Learn weights, means and covariances of a mixture from importance weights.

    Equally many draws around each component, at several scales, and some over all of them are
    weighted by the density over the mixture that they come from; expectation maximization on these
    weights minimizes :math:`KL(p \,\|\, q)`. Where mass lies outside of the components, one more
    starts there; where the gap between evidence and bound is larger than was aimed at, components
    are split.

    Args:
        log_density: The density of the block, up to a constant.
        log_evidence: Log evidences of the components at the start ``(K,)``, as far as is known.
        normals: The components at the start, with full factors.
        aim: Gap, in nats, at which components are not split further.
        generator: Source of the noise.

    Cost:
        160 rows for each component in each of some five to fifteen rounds, no gradients.
    """
    given = BLOCK_MIXTURES
    state = _pruned(_State(torch.log_softmax(log_evidence.double(), 0), normals))
    points = 0

    def scored(z: Tensor) -> Tensor:
        nonlocal points
        points += len(z)
        return log_density(z)

    modes = len(state)
    gap, level = _gap(state, scored, generator)
    if modes > 1 or gap > aim:
        added = 0
        turn = 0
        while turn < given.learning_rounds:
            turn += 1
            last = turn == given.learning_rounds
            draws = _draws(state, scored, generator, given.last_factor if last else 1)
            state = _learnt(state, draws)
            before = len(state)
            while added < given.added and len(state) < before + given.added_at_once:
                place = _outside(state, draws)
                if place is None:
                    break
                state, added = _with_new(state, place, draws), added + 1
            if len(state) > before:
                turn = min(turn, given.learning_rounds - 1)
        gap, level = _gap(state, scored, generator)
    most = max(len(state), min(given.split_most * modes, given.components))
    for _ in range(given.splits):
        if gap <= aim or len(state) >= most:
            break
        split = _split(state, scored, level, most, generator)
        for factor in (1, given.last_factor):
            split = _learnt(split, _draws(split, scored, generator, factor))
        new_gap, new_level = _gap(split, scored, generator)
        if not new_gap < gap:
            break
        state, gap, level = split, new_gap, new_level
    return LearntMixture(state.log_weights, state.normals.loc, state.normals.factor, gap, points)


@dataclass(frozen=True, eq=False)
class _Draws:
    z: Tensor
    log_p: Tensor
    weight: Tensor  # importance weights, which sum to 1
    level: float  # log evidence by these draws


def even_noise(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Return even points ``(num, size)`` in (0, 1): a scrambled Sobol sequence."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    engine = SobolEngine(size, scramble=True, seed=seed)
    unit = engine.draw(num, dtype=torch.float64).to(generator.device)
    return unit.clamp(1e-12, 1 - 1e-12)


def _draws(
    state: _State, log_density: LogDensity, generator: torch.Generator, factor: int = 1
) -> _Draws:
    """Draw around each component at several scales, and over all; weigh by the whole mixture."""
    given, normals = BLOCK_MIXTURES, state.normals
    num = factor * max(given.fewest_draws, given.component_draws * len(state))
    each = max(given.fewest_each, math.ceil((1 - given.wide) * num / len(state)))
    counts = [max(1, round(share * each)) for share in given.shares]
    parts, sources, shares = [], [], []
    for scale, count in zip(given.scales, counts, strict=True):
        one = Normals(normals.loc, scale * normals.factor)
        eps = torch.special.ndtri(even_noise(count, one.dim, generator))
        parts.append(one.points(eps.expand(len(one), -1, -1)).flatten(0, 1))
        sources.append(one)
        shares.append(count * len(state))
    spread = _spread(state)
    wide = max(given.fewest_wide, round(given.wide * num))
    eps = torch.special.ndtri(even_noise(wide, spread.dim, generator))
    parts.append(spread.points(eps[None])[0])
    z = torch.cat(parts)
    total = len(z)
    logs = [
        torch.logsumexp(one.log_prob(z), -1) - math.log(len(state)) + math.log(share / total)
        for one, share in zip(sources, shares, strict=True)
    ]
    logs.append(spread.log_prob(z)[:, 0] + math.log(wide / total))
    log_p = log_density(z)
    log_w = log_p - torch.logsumexp(torch.stack(logs), 0)
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    if not bool((log_w > -torch.inf).any()):
        return _Draws(z, log_p, torch.zeros_like(log_w), -math.inf)
    level = float(torch.logsumexp(log_w, 0)) - math.log(total)
    return _Draws(z, log_p, torch.softmax(log_w, 0), level)


def _spread(state: _State) -> Normals:
    """Return one wide Gaussian over all components, each of which counts as much."""
    locs, factors = state.normals.loc, state.normals.factor
    middle = locs.mean(0)
    away = locs - middle
    cov = away.mT @ away / len(locs) + (factors @ factors.mT).mean(0)
    alone = 1.0 if len(locs) > 1 else BLOCK_MIXTURES.alone_scale
    scale = alone * BLOCK_MIXTURES.wide_scale
    return Normals(middle[None], (scale * torch.linalg.cholesky(cov))[None])


def _learnt(state: _State, draws: _Draws) -> _State:
    """Iterate expectation maximization on weighted draws; components of few draws keep shape."""
    given, z, omega = BLOCK_MIXTURES, draws.z, draws.weight
    if not bool((omega > 0).any()):
        return state
    size = z.shape[-1]
    eye = torch.eye(size, dtype=z.dtype, device=z.device)
    for _ in range(given.iterations):
        each = state.normals.log_prob(z) + state.log_weights
        held = omega.unsqueeze(-1) * torch.softmax(each, -1)
        weight = held.sum(0)
        effective = weight.square() / held.square().sum(0).clamp_min(1e-300)
        enough = effective > given.draws_per_moment * (size + 1)
        part = held / weight.clamp_min(1e-300)
        loc = part.mT @ z
        away = z - loc.unsqueeze(1)
        cov = torch.einsum("nk,kni,knj->kij", part, away, away)
        ridge = given.ridge * state.normals.factor.square().sum((-2, -1)) / size
        factor, failed = torch.linalg.cholesky_ex(cov + ridge[:, None, None] * eye)
        enough = enough & (failed == 0)
        learnt = Normals(loc, factor)
        weights = weight.clamp_min(given.least_weight)
        state = _State((weights / weights.sum()).log(), learnt.where(enough, state.normals))
    return _pruned(state)


def _pruned(state: _State) -> _State:
    keep = (state.log_weights > math.log(BLOCK_MIXTURES.pruned * BLOCK_MIXTURES.least_weight)) | (
        state.log_weights == state.log_weights.max()
    )
    if bool(keep.all()):
        return state
    index = keep.nonzero().squeeze(-1)
    return _State(torch.log_softmax(state.log_weights[index], 0), state.normals.take(index))


def _own(state: _State, num: int, generator: torch.Generator) -> Tensor:
    """Draw from a mixture."""
    unit = even_noise(num, 1 + state.normals.dim, generator)
    edges = state.log_weights.exp().cumsum(0)
    place = torch.searchsorted(edges, unit[:, 0].contiguous()).clamp_max(len(state) - 1)
    eps = torch.special.ndtri(unit[:, 1:]).unsqueeze(-1)
    return state.normals.loc[place] + (state.normals.factor[place] @ eps).squeeze(-1)


def _gap(state: _State, log_density: LogDensity, generator: torch.Generator) -> tuple[float, float]:
    """Return the gap between evidence and bound, and the log evidence, by draws of the mixture."""
    z = _own(state, BLOCK_MIXTURES.judged, generator)
    log_w = log_density(z) - state.log_prob(z)
    log_w = log_w[torch.isfinite(log_w)]
    if not len(log_w):
        return math.inf, -math.inf
    level = float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))
    return level - float(log_w.mean()), level


def _outside(state: _State, draws: _Draws) -> Tensor | None:
    """Return the heaviest point where the mixture is far too low; None where little mass is."""
    short = draws.log_p - state.log_prob(draws.z) - draws.level
    mass = draws.weight * (short > NESTED_MASS.outside)
    if float(mass.sum()) < BLOCK_MIXTURES.outside_share:
        return None
    return draws.z[mass.argmax()]


def _with_new(state: _State, place: Tensor, draws: _Draws) -> _State:
    """Add a component at a place, as wide as the weighted draws that are nearest to it."""
    given, away = BLOCK_MIXTURES, draws.z - place
    distance = away.square().sum(-1)
    held = draws.weight * (
        distance <= distance.sort().values[min(given.nearest, len(distance) - 1)]
    )
    cov = torch.einsum("n,ni,nj->ij", held / held.sum().clamp_min(1e-300), away, away)
    nearest = state.normals.factor[(state.normals.loc - place).square().sum(-1).argmin()]
    cov = cov + given.least_covariance * nearest @ nearest.mT
    factor = torch.linalg.cholesky(cov)
    weights = torch.cat([state.log_weights.exp(), state.log_weights.new_tensor([given.new_weight])])
    both = Normals(
        torch.cat([state.normals.loc, place[None]]),
        torch.cat([state.normals.factor, factor[None]]),
    )
    return _State((weights / weights.sum()).log(), both)


def _split(
    state: _State, log_density: LogDensity, level: float, most: int, generator: torch.Generator
) -> _State:
    """Split the components whose log weights vary most, each along its longest axis."""
    given = BLOCK_MIXTURES
    z = _own(state, given.judged, generator)
    each = state.normals.log_prob(z) + state.log_weights
    log_w = log_density(z) - torch.logsumexp(each, -1)
    off = torch.where(torch.isfinite(log_w), (log_w - level).square(), 0.0)
    cost = (torch.softmax(each, -1) * off.unsqueeze(-1)).mean(0)
    order = cost.argsort(descending=True)
    worst = order[cost[order] >= given.costly * cost.mean()][: most - len(state)]
    factor = state.normals.factor[worst]
    values, vectors = torch.linalg.eigh(factor @ factor.mT)
    axis = vectors[..., -1] * values[..., -1].sqrt().unsqueeze(-1)
    cov = factor @ factor.mT - given.apart**2 * axis.unsqueeze(-1) * axis.unsqueeze(-2)
    halves = torch.linalg.cholesky(cov)
    loc, weight = state.normals.loc[worst], state.log_weights[worst] - math.log(2)
    rest = torch.ones(len(state), dtype=torch.bool)
    rest[worst.cpu()] = False
    stay = rest.nonzero().squeeze(-1)
    return _State(
        torch.cat([state.log_weights[stay], weight, weight]),
        Normals(
            torch.cat(
                [state.normals.loc[stay], loc - given.apart * axis, loc + given.apart * axis]
            ),
            torch.cat([state.normals.factor[stay], halves, halves]),
        ),
    )
