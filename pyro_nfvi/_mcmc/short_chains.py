"""Short chains side by side, each from a draw of an approximation in the space of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.hmc import State, accept, trajectory
from pyro_nfvi._mcmc.recipe import SHORT


@dataclass(frozen=True, eq=False)
class ShortChains:
    """Beginnings and ends of chains.

    Attributes:
        start: Positions at the beginning ``(C, D)``.
        end: Positions at the end ``(C, D)``.
        log_p: Log density at the end ``(C,)``, in nats.
        acceptance: Mean probability with which transitions were accepted.
    """

    start: Tensor
    end: Tensor
    log_p: Tensor
    acceptance: float


def short_chains(
    density: ScoredDensity, start: Tensor, generator: torch.Generator, budget: Budget = UNLIMITED
) -> ShortChains | None:
    """Run each chain for a few dozen leapfrog steps from its start.

    The step size is one for a standard normal, halved until trajectories are accepted; it is set
    before the chains begin, and every transition leaves the density invariant.

    Args:
        density: The density of the noise, with its gradient.
        start: Starts ``(C, D)``.
        generator: Random stream.
        budget: Time for all.

    Returns:
        Beginnings and ends; None where more than a few starts have no finite density, no step size
        is accepted, or the time was over first.

    Cost:
        24 evaluations of the density with its gradient, and three for each step size that is tried.

    Example:
        >>> import torch
        >>> from pyro_nfvi._mcmc.autograd_density import AutogradDensity
        >>> from pyro_nfvi._random import stream
        >>> wide = AutogradDensity(lambda z: -0.5 * (z / 2).square().sum(-1))
        >>> found = short_chains(wide, torch.randn(2000, 1), stream(0, "example"))
        >>> 1.7 < found.end.std() < 2.3  # from draws of a normal that is half as wide
        tensor(True)
    """
    state = State.at(density, start)
    finite = state.finite()
    if float(finite.double().mean()) < SHORT.finite:
        return None
    if not bool(finite.all()):
        state = State(state.position[finite], state.log_p[finite], state.gradient[finite])
    begin = state.position
    size = SHORT.first_step * begin.shape[-1] ** -0.25
    for _ in range(SHORT.halvings + 1):
        step, steps = torch.full_like(begin[0], size), _steps(size)
        found = trajectory(density, state, _noise(begin, generator), step, min(3, steps))
        if float(found.acceptance.mean()) >= SHORT.acceptance:
            break
        size /= 2
    else:
        return None
    accepted, count = 0.0, max(1, SHORT.gradients // steps)
    for _ in range(count):
        if budget.over():
            return None
        proposal = trajectory(density, state, _noise(begin, generator), step, steps)
        state, _ = accept(state, proposal, generator)
        accepted += float(proposal.acceptance.mean()) / count
    return ShortChains(begin, state.position, state.log_p, accepted)


def _steps(size: float) -> int:
    """Leapfrog steps of one trajectory."""
    return max(1, min(SHORT.gradients, math.ceil(SHORT.length / size - 1e-9)))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
