"""Movements of means and sds under short chains, and lower bounds on their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._mcmc.neutra import PulledBack
from pyro_nfvi._mcmc.short_chains import short_chains
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._bridge import bridge_evidence, disagree
from pyro_nfvi.diagnostics._importance import log_evidence, resample
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer._checks.moments import names_of, values_of
from pyro_nfvi.infer._findings import ChainsMove, EvidenceDiffers
from pyro_nfvi.infer._recipe import CALL_SIZES, MOMENTS, SHORT_CHAINS

#: Evaluations of the model by how particles are evaluated: one by one, they would take too long.
CHAIN_ROWS = {"plate": 30 * SHORT_CHAINS.chains, "vmap": 30 * SHORT_CHAINS.chains, "loop": 0}


@dataclass(frozen=True, eq=False)
class ChainEnds:
    """Draws of a guide, and where short chains from them ended.

    Attributes:
        start: Points ``(N, D)`` that are draws of the guide.
        end: Points ``(N, D)`` at the end of the chain from each.
        weight: Normalised weights ``(N,)`` of the chains in float64: shares of a mixture's parts.
        log_w: Log density of the model less that of the guide at the ends ``(N,)``, in nats.
    """

    start: Tensor
    end: Tensor
    weight: Tensor
    log_w: Tensor


@dataclass(frozen=True, eq=False)
class Movements:
    """Movements of means and sds under short chains, number by number: ``(P,)`` each.

    Attributes:
        shift: Movement of the mean, in sds at the end.
        stretch: Movement of the logarithm of the sd.
        shift_error: Standard error of ``shift``.
        stretch_error: Standard error of ``stretch``.
        memory: Correlation of beginning and end.
        square_memory: That of the squared distances from their means.
    """

    shift: Tensor
    stretch: Tensor
    shift_error: Tensor
    stretch_error: Tensor
    memory: Tensor
    square_memory: Tensor

    @classmethod
    def of(cls, before: Tensor, after: Tensor, weight: Tensor) -> Movements:
        """Compare columns at both ends, chain by chain.

        Args:
            before: Numbers at the beginning ``(N, P)``.
            after: Numbers at the end ``(N, P)``, of the same chains.
            weight: Normalised weights ``(N,)``.

        Returns:
            Movements; 0 where a number has no spread.
        """
        weight = weight.unsqueeze(-1)
        centre, mean = (weight * before).sum(0), (weight * after).sum(0)
        apart, away = before - centre, after - mean
        own, variance = (weight * apart.square()).sum(0), (weight * away.square()).sum(0)
        spread = (own > 0) & (variance > 0) & torch.isfinite(own) & torch.isfinite(variance)
        own, variance = torch.where(spread, own, 1.0), torch.where(spread, variance, 1.0)
        zero = torch.zeros_like(own)
        square, squared = apart.square() / own - 1, away.square() / variance - 1
        found = (
            (mean - centre) / variance.sqrt(),
            0.5 * (variance / own).log(),
            (weight * (away - apart) / variance.sqrt()).square().sum(0).sqrt(),
            (weight * (squared - square) / 2).square().sum(0).sqrt(),
            (weight * apart * away).sum(0) / (own * variance).sqrt(),
            _correlation(square, squared, weight),
        )
        return cls(*(torch.where(spread, one, zero) for one in found))

    @property
    def sure(self) -> tuple[Tensor, Tensor]:
        """Movements of mean and log sd that are not chance ``(P,)``, all numbers together."""
        tail = SHORT_CHAINS.false_alarm / (4 * max(1, len(self.shift)))  # two moments, two sides
        errors = -float(torch.special.ndtri(torch.tensor(tail, dtype=torch.float64)))
        shift = (self.shift.abs() - errors * self.shift_error).clamp_min(0.0)
        stretch = (self.stretch.abs() - errors * self.stretch_error).clamp_min(0.0)
        return shift, stretch

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        r"""Lower bounds of the errors of mean (in sds) and log sd ``(P,)``.

        A transition leaves the posterior's means as they are. A mean :math:`m_T` that is no
        farther from the posterior's m than the guide's :math:`m_0` was has

        .. math:: |m_0 - m| \ge \tfrac12 |m_0 - m_T|,

        and so has the logarithm of an sd. On the way there a moment may first go astray, where
        others are wrong: chains that remember their start bound nothing, and 0 is returned.
        """
        shift, stretch = self.sure
        most, zero = SHORT_CHAINS.memory, torch.zeros_like(shift)
        forgotten = self.memory.abs() <= most
        both = forgotten & (self.square_memory.abs() <= most)
        return torch.where(forgotten, shift / 2, zero), torch.where(both, stretch / 2, zero)


def _correlation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Correlation of columns that have mean 0."""
    size = ((weight * x.square()).sum(0) * (weight * y.square()).sum(0)).sqrt()
    return (weight * x * y).sum(0) / size.clamp_min(1e-300)


def chain_ends(
    density: FlowDensity | NoiseDensity,
    log_joint: LogJoint,
    seed: int,
    budget: Budget = UNLIMITED,
) -> ChainEnds | None:
    r"""Run short chains from draws of a guide, in the space of its noise.

    Where the guide is the posterior, they stay draws of it; elsewhere they move towards it. They do
    so within the modes that the guide has. Of a mixture each part has chains of its own, as many
    as its weight says, 64 at least.

    Args:
        density: Density of the guide.
        log_joint: The log joint.
        seed: Seed of the fit.
        budget: Time for all.

    Returns:
        The draws; None where chains cannot be run, or not in time.

    Cost:
        Some 30 gradients of model and flow at 1024 points together.

    Source: Wang, Kasprzak & Huggins 2023, arXiv:2302.12419 (TADDAA).
    """
    chains = min(SHORT_CHAINS.chains, CALL_SIZES.ascent // max(1, log_joint.size))
    if log_joint.in_parts or log_joint.subsampled or chains < SHORT_CHAINS.fewest:
        return None
    parts: list[FlowDensity]
    if isinstance(density, MixtureDensity):
        parts = [part for part in density.parts if isinstance(part, FlowDensity)]
        weights = density.log_weights.detach().double().exp()
    elif isinstance(density, FlowDensity):
        parts, weights = [density], torch.ones(1, dtype=torch.float64)
    else:
        return None  # a guide of Pyro's own, which has no flow to run through
    if any(part.base is not None and not isinstance(part.base, Base) for part in parts):
        return None
    found = []
    for number, (part, share) in enumerate(zip(parts, weights.tolist())):
        noise = stream(seed, "short chains", number, device=weights.device)
        count = max(SHORT_CHAINS.fewest_of_part, round(share * chains))
        with scoring(part), torch.no_grad():
            start = part.sample_base(count, generator=noise).detach()
            ended = short_chains(PulledBack(log_joint, part.flow), start, noise, budget)
            if ended is None:
                return None
            begin, _ = part.flow(ended.start)
            end, ladj = part.flow(ended.end)
        weight = torch.full((len(end),), share / len(end), dtype=torch.float64, device=end.device)
        found.append(ChainEnds(begin, end, weight, ended.log_p - ladj))
    weight, end = torch.cat([one.weight for one in found]), torch.cat([one.end for one in found])
    with torch.no_grad():
        log_w = torch.cat([one.log_w for one in found]) - density.log_prob(end)
    return ChainEnds(torch.cat([one.start for one in found]), end, weight / weight.sum(), log_w)


def evidence_differs(log_w: Tensor, ends: ChainEnds) -> EvidenceDiffers | None:
    """Compare the evidence by importance sampling with that by a bridge to the chains' ends.

    Args:
        log_w: Log weights of the guide's draws ``(S,)``.
        ends: Ends of short chains; where a mixture has several parts they are drawn by weight.

    Returns:
        The finding; None where the two agree, or weights say nothing.
    """
    index = resample(ends.weight.log(), len(ends.end), generator=stream(0, "bridge"))
    try:
        importance, spread = log_evidence(log_w)
        bridge, error = bridge_evidence(log_w, ends.log_w[index.to(ends.log_w.device)])
    except WeightError:
        return None
    if not disagree(bridge, error, importance, spread):
        return None
    return EvidenceDiffers(importance, spread, bridge, error)


def movements(latent: LatentSpace, ends: ChainEnds) -> Movements:
    """Compare means and sds of all constrained values at both ends of short chains.

    Args:
        latent: The latent space.
        ends: Both ends.
    """
    before, after = values_of(latent, ends.start), values_of(latent, ends.end)
    ok = torch.isfinite(before).all(-1) & torch.isfinite(after).all(-1)
    return Movements.of(before[ok], after[ok], ends.weight[ok] / ends.weight[ok].sum())


def chains_move(
    latent: LatentSpace, moved: Movements, chains: int, heavy: tuple[str, ...] = ()
) -> ChainsMove:
    """Say which numbers move by more than a user may see, and the bounds by site.

    Args:
        latent: The latent space.
        moved: Movements of all numbers.
        chains: Number of chains.
        heavy: Numbers without a variance, which are left out.
    """
    names = names_of(latent)
    known = torch.tensor([name not in heavy for name in names], device=moved.shift.device)
    shift, stretch = (torch.where(known, one, 0.0) for one in moved.sure)
    mean, sd = (torch.where(known, one, 0.0) for one in moved.bounds)
    worst = torch.maximum(shift / MOMENTS.mean, stretch / math.log(MOMENTS.sd))
    order = [i for i in worst.argsort(descending=True).tolist() if worst[i] > 1]
    counts = [math.prod(site.shape) for site in latent.sites.values()]
    return ChainsMove(
        chains,
        tuple(names[i] for i in order),
        tuple(float(moved.shift[i]) for i in order),
        tuple(math.exp(float(moved.stretch[i])) for i in order),
        tuple(latent.sites),
        tuple(float(part.max()) if len(part) else 0.0 for part in mean.split(counts)),
        tuple(float(part.max()) if len(part) else 0.0 for part in sd.split(counts)),
    )


def needs_no_chains(log_w: Tensor) -> bool:
    """Tell whether a guide is so close that its chains could show nothing.

    With a divergence of d nats from the posterior a mean is off by at most sqrt(2 d) sds for
    normals: below the gap of the recipe nothing is off that a user sees. That gap is an average of
    the guide's own draws, and so is where chains start: what is missing from one is from the other.
    """
    log_w = log_w.double()
    gap = float(torch.logsumexp(log_w, 0) - math.log(len(log_w)) - log_w.mean())
    return gap < SHORT_CHAINS.least_gap
