"""Adaptation of all chains together: step size, scales of the coordinates, trajectory length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_nfvi._mcmc.hmc import Proposal, State
from pyro_nfvi._mcmc.recipe import ADAPTATION, TRANSITION


@dataclass(frozen=True, eq=False)
class Tuning:
    """Numbers that a transition takes, fixed once the warm-up is over.

    Attributes:
        step_size: Step size in units of the scales.
        length: Mean length of a trajectory in units of the scales.
        scale: Scale of each coordinate ``(D,)``.
    """

    step_size: float
    length: float
    scale: Tensor

    @property
    def step(self) -> Tensor:
        """Step size of each coordinate ``(D,)``."""
        return self.step_size * self.scale

    def steps(self, index: int) -> int:
        """Return the number of leapfrog steps of a transition, jittered by its number.

        The same for all chains, and no function of where they are, so that each transition leaves
        the density invariant. Lengths are spread evenly from 0 to twice the mean, which no period
        of the density can be in tune with.
        """
        jittered = 2 * halton(index) * self.length / self.step_size
        return max(1, min(TRANSITION.most_steps, math.ceil(jittered)))


@dataclass(frozen=True)
class StepSize:
    """Log step size on its way to an acceptance.

    Attributes:
        log: Present logarithm.
        sum: Sum of the logarithms of the second half of the iterations, and their number.
        count: Iterations so far.
    """

    log: float
    sum: float = 0.0
    weight: float = 0.0
    count: int = 0

    def updated(self, acceptance: float) -> StepSize:
        """Move by what all chains accepted (Robbins and Monro 1951)."""
        gain = ADAPTATION.gain / math.sqrt(1 + self.count)
        log = self.log + gain * (acceptance - ADAPTATION.acceptance)
        # Averaged with weights that grow, so that the first iterations count little.
        weight = float(self.count)
        return StepSize(log, self.sum + weight * log, self.weight + weight, self.count + 1)

    def restarted(self) -> StepSize:
        """Go on from the average, with larger moves again."""
        return StepSize(self.average, count=ADAPTATION.restart)

    @property
    def average(self) -> float:
        """Weighted mean of the logarithms."""
        return self.sum / self.weight if self.weight else self.log


@dataclass(frozen=True)
class Length:
    """Log trajectory length on its way to the largest change of the squared distance from the mean.

    Attributes:
        log: Present logarithm.
        square: Smoothed square of the gradient.
        average: Average of the logarithms, later ones weighing more.
        count: Moves so far.
    """

    log: float
    square: float = 0.0
    average: float = 0.0
    count: int = 0

    def updated(self, gradient: float, least: float, most: float) -> Length:
        """Take one step of Adam without momentum, within bounds of the length."""
        if not math.isfinite(gradient):
            return self
        recipe, count = ADAPTATION, self.count + 1
        square = (1 - recipe.forget) * self.square + recipe.forget * gradient**2
        unbiased = math.sqrt(square / (1 - (1 - recipe.forget) ** count))
        move = recipe.rate * gradient / unbiased if unbiased > 0 else 0.0
        log = min(max(self.log + move, math.log(least)), math.log(most))
        share = 2 / (count + 1)
        return Length(log, square, share * log + (1 - share) * self.average, count)

    @property
    def settled(self) -> float:
        """The length to stay with."""
        return math.exp(self.average if self.count else self.log)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """State of the warm-up.

    Attributes:
        step_size: The step size.
        length: The trajectory length.
        scale: Scale of each coordinate ``(D,)``.
        kept: Positions since the scales were set, ``(C, D)`` each.
        index: Iterations so far.
    """

    step_size: StepSize
    length: Length
    scale: Tensor
    kept: tuple[Tensor, ...] = field(default=(), repr=False)
    index: int = 0

    @classmethod
    def start(cls, position: Tensor) -> Adaptation:
        """Begin at the positions ``(C, D)``, as if the density were standard normal."""
        dim = position.shape[-1]
        return cls(
            StepSize(math.log(ADAPTATION.first_step * dim**-0.25)),
            Length(math.log(ADAPTATION.first_length)),
            torch.ones_like(position[0]),
        )

    @property
    def tuning(self) -> Tuning:
        """Numbers of the next transition of the warm-up."""
        return Tuning(math.exp(self.step_size.log), math.exp(self.length.log), self.scale)

    @property
    def settled(self) -> Tuning:
        """Numbers to stay with."""
        return Tuning(math.exp(self.step_size.average), self.length.settled, self.scale)

    def updated(
        self, begin: State, proposal: Proposal, end: State, duration: float, warmup: int
    ) -> Adaptation:
        """Learn from one transition of all chains.

        Args:
            begin: States before it.
            proposal: Its proposals.
            end: States after it.
            duration: Length of its trajectories, in units of the scales.
            warmup: Iterations of the warm-up.
        """
        acceptance = proposal.acceptance
        step_size = self.step_size.updated(_mean_acceptance(proposal))
        length = self.length
        if self.index >= ADAPTATION.settle:
            gradient = chees_gradient(begin, proposal, acceptance, self.scale, duration)
            size = math.exp(step_size.log)
            length = length.updated(gradient, size, ADAPTATION.longest * size)
        index = self.index + 1
        found = replace(
            self, step_size=step_size, length=length, kept=(*self.kept, end.position), index=index
        )
        if index in {math.ceil(place * warmup) for place in ADAPTATION.scale_places}:
            return found._rescaled()
        return found

    def _rescaled(self) -> Adaptation:
        """Set the scales to the spread of the later half of the positions that were kept."""
        points = torch.cat(self.kept[len(self.kept) // 2 :])
        count, prior = float(len(points)), ADAPTATION.scale_prior
        square = (count * points.var(0) + prior * self.scale.square()) / (count + prior)
        scale = square.sqrt()
        usable = torch.isfinite(scale) & (scale > 0)
        return replace(
            self,
            step_size=self.step_size.restarted(),
            scale=torch.where(usable, scale, self.scale),
            kept=(),
        )


def chees_gradient(
    begin: State, proposal: Proposal, acceptance: Tensor, scale: Tensor, duration: float
) -> float:
    r"""Gradient of the change of the squared distance from the mean, in the log length.

    With :math:`\Delta = \|x' - \mu'\|^2 - \|x - \mu\|^2`, of :math:`\tfrac14 E[\Delta^2]` over
    trajectories of length t:

    .. math:: t\, \Delta\, (x' - \mu')^\top p'

    averaged over the chains by their acceptance, in coordinates divided by their scales. Unlike the
    squared distance that a chain goes, it is not largest where means alone are found well.

    Args:
        begin: Beginnings of the trajectories.
        proposal: Their ends.
        acceptance: Acceptance probabilities ``(C,)``.
        scale: Scales ``(D,)``.
        duration: Length t.

    Source: Hoffman, Radul & Sountsov 2021, AISTATS, section 3 and algorithm 1.
    """
    weight = acceptance / acceptance.sum().clamp_min(1e-300)
    old, new = begin.position.double() / scale, proposal.state.position.double() / scale
    old = old - old.mean(0)
    new = new - (weight.unsqueeze(-1) * new).sum(0)
    change = new.square().sum(-1) - old.square().sum(-1)
    slope = duration * change * (new * proposal.momentum).sum(-1)
    return float((weight * torch.where(weight > 0, slope, 0.0)).sum())


def halton(index: int) -> float:
    """Return a member of the Halton sequence of base 2, in (0, 1).

    Example:
        >>> [halton(index) for index in range(4)]
        [0.5, 0.25, 0.75, 0.125]
    """
    value, share, rest = 0.0, 0.5, index + 1
    while rest:
        value += share * (rest % 2)
        rest, share = rest // 2, share / 2
    return value


def _mean_acceptance(proposal: Proposal) -> float:
    """Harmonic mean of the chains' acceptance: low where some chains are stuck.

    Trajectories that met a density that is not finite do not count unless they are most: at an edge
    of the support they do so whatever the step size.
    """
    acceptance = proposal.acceptance
    inside = torch.isfinite(proposal.energy_error)
    if 2 * int(inside.sum()) > len(inside):
        acceptance = acceptance[inside]
    return float(1 / (1 / acceptance.clamp_min(ADAPTATION.least_acceptance)).mean())
