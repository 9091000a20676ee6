"""One Hamiltonian transition of many chains at once: leapfrog steps, then acceptance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.recipe import TRANSITION


@dataclass(frozen=True, eq=False)
class State:
    """Positions of all chains with the density there.

    Attributes:
        position: ``(C, D)``.
        log_p: Log density ``(C,)``, in nats.
        gradient: Its gradient ``(C, D)``.
    """

    position: Tensor
    log_p: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, density: ScoredDensity, position: Tensor) -> State:
        """Evaluate the density at positions ``(C, D)``."""
        return cls(position, *density.value_and_grad(position))

    def finite(self) -> Tensor:
        """Chains at which density and gradient are finite ``(C,)``."""
        return torch.isfinite(self.log_p) & torch.isfinite(self.gradient).all(-1)

    def chosen(self, other: State, takes: Tensor) -> State:
        """Return ``other`` for the chains ``(C,)`` that take it, and this one for the rest."""
        row = takes.unsqueeze(-1)
        return State(
            torch.where(row, other.position, self.position),
            torch.where(takes, other.log_p, self.log_p),
            torch.where(row, other.gradient, self.gradient),
        )


@dataclass(frozen=True, eq=False)
class Proposal:
    """The end of a trajectory.

    Attributes:
        state: The end; where a trajectory met a density that is not finite, its beginning.
        momentum: Momentum there ``(C, D)``.
        energy_error: Energy at the beginning less that at the end ``(C,)``, in nats, in double
            precision; -inf where a density was not finite.
    """

    state: State
    momentum: Tensor
    energy_error: Tensor

    @property
    def acceptance(self) -> Tensor:
        """Probability of acceptance ``(C,)``."""
        return self.energy_error.clamp_max(0.0).exp()

    @property
    def divergent(self) -> Tensor:
        """Trajectories whose error of the energy is too large, or that left the support."""
        return ~(self.energy_error > -TRANSITION.divergence)


def trajectory(
    density: ScoredDensity, begin: State, momentum: Tensor, step: Tensor, steps: int
) -> Proposal:
    r"""Follow Hamilton's equations by leapfrog steps.

    .. math::
        p \mathrel{+}= \tfrac12 h \odot \nabla\log\pi(x), \quad x \mathrel{+}= h \odot p, \quad
        p \mathrel{+}= \tfrac12 h \odot \nabla\log\pi(x)

    The map reverses itself where the momentum changes its sign, and keeps volume, so that
    acceptance by the error of the energy leaves the density invariant.

    Args:
        density: The density.
        begin: The beginning, finite.
        momentum: Momentum ``(C, D)``; its energy is half its square.
        step: Step sizes h ``(D,)``: one number times the scale of each coordinate.
        steps: Number of steps.

    Cost:
        ``steps`` evaluations of the density.

    Source: Neal 2011, Handbook of Markov Chain Monte Carlo, chapter 5, section 5.3.2.
    """
    position, gradient, log_p = begin.position, begin.gradient, begin.log_p
    half = 0.5 * step
    p = torch.addcmul(momentum, gradient, half)
    lost: Tensor | None = None
    for index in range(steps):
        position = torch.addcmul(position, p, step)
        log_p, gradient = density.value_and_grad(position)
        # One number first: rows are looked at only where there is something to see.
        if lost is not None or not math.isfinite(float(gradient.sum() + log_p.sum())):
            bad = ~(torch.isfinite(log_p) & torch.isfinite(gradient).all(-1))
            lost = bad if lost is None else lost | bad
            # Such a chain waits where it began, so that it costs no exceptions and spreads no NaN.
            position = torch.where(lost.unsqueeze(-1), begin.position, position)
            gradient = torch.where(lost.unsqueeze(-1), begin.gradient, gradient)
            log_p = torch.where(lost, begin.log_p, log_p)
        p = torch.addcmul(p, gradient, step if index < steps - 1 else half)
    error = (log_p.double() - begin.log_p.double()) + _kinetic(momentum) - _kinetic(p)
    if lost is not None:
        error = torch.where(lost, -math.inf, error)
    error = torch.where(error.isnan(), -math.inf, error)
    return Proposal(State(position, log_p, gradient), p, error)


def accept(begin: State, proposal: Proposal, generator: torch.Generator) -> tuple[State, Tensor]:
    """Accept or reject the proposals, each chain for itself (Metropolis et al. 1953).

    Args:
        begin: The beginnings.
        proposal: The ends.
        generator: Random stream.

    Returns:
        The new states, and which chains moved ``(C,)``.
    """
    chance = torch.rand(
        len(begin.log_p), dtype=torch.float64, device=begin.log_p.device, generator=generator
    )
    moves = chance < proposal.acceptance
    return begin.chosen(proposal.state, moves), moves


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
