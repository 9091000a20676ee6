"""Runs of many Hamiltonian chains side by side: warm-up, then draws of a fixed transition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.adaptation import Adaptation, Tuning
from pyro_nfvi._mcmc.hmc import State, accept, trajectory
from pyro_nfvi._mcmc.recipe import RUN


class Ending(Enum):
    """Reason for which a run ended."""

    DONE = "done"
    TIME = "max_seconds"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, eq=False, repr=False)
class Chains:
    """Draws of many chains.

    Attributes:
        draws: ``(C, N, D)``.
        log_p: Log density of each ``(C, N)``, in nats.
        acceptance: Probability with which each transition was accepted ``(C, N)``.
        divergent: Transitions that were divergent ``(C, N)``.
        moved: Transitions that were accepted ``(C, N)``.
        tuning: Step size, trajectory length and scales.
        steps: Leapfrog steps of each transition ``(N,)``.
        warmup: Iterations of the warm-up.
        warmup_gradients: Gradients of each chain in the warm-up.
        ending: Reason for which the run ended.
    """

    draws: Tensor
    log_p: Tensor
    acceptance: Tensor
    divergent: Tensor
    moved: Tensor
    tuning: Tuning
    steps: Tensor
    warmup: int
    warmup_gradients: int
    ending: Ending

    @property
    def gradients(self) -> int:
        """Gradients that each chain took in all."""
        return self.warmup_gradients + int(self.steps.sum())


def run_chains(
    density: ScoredDensity,
    start: Tensor,
    generator: torch.Generator,
    *,
    num_samples: int,
    warmup: int,
    budget: Budget = UNLIMITED,
    tick: Callable[[int], object] = lambda _: None,
) -> Chains:
    """Run Hamiltonian chains from their starts, adapted together and then left alone.

    All chains take equally many leapfrog steps in a transition, so that each step is one evaluation
    of the density for all of them.

    Args:
        density: The density, finite at the starts.
        start: Starts ``(C, D)``, two at least.
        generator: Random stream.
        num_samples: Draws of each chain.
        warmup: Iterations of the warm-up.
        budget: Time for all; where it ends early, there are fewer draws.
        tick: Called with 1 after each iteration.

    Returns:
        The draws; those until then after Ctrl-C, if there are any.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first draw.

    Cost:
        ``steps`` evaluations for each iteration, and a few microseconds each.

    Source: Hoffman, Radul & Sountsov 2021, "An adaptive-MCMC scheme for setting trajectory lengths
    in Hamiltonian Monte Carlo", AISTATS.

    Example:
        >>> import torch
        >>> from pyro_nfvi._mcmc.autograd_density import AutogradDensity
        >>> from pyro_nfvi._random import stream
        >>> normal = AutogradDensity(lambda z: -0.5 * z.square().sum(-1))
        >>> noise = stream(0, "example")
        >>> start = torch.zeros(16, 2)
        >>> found = run_chains(normal, start, noise, num_samples=100, warmup=50)
        >>> found.draws.shape, 0.9 < found.draws.std() < 1.1
        (torch.Size([16, 100, 2]), tensor(True))
    """
    state, tuning, done, gradients = _warm_up(
        density, State.at(density, start), generator, warmup, budget.part(RUN.warmup_share), tick
    )
    shape = (len(start), num_samples)
    draws = start.new_empty((*shape, start.shape[-1]))
    log_p = state.log_p.new_empty(shape)
    acceptance = torch.empty(shape, dtype=torch.float64, device=start.device)
    divergent = torch.empty(shape, dtype=torch.bool, device=start.device)
    moved = torch.empty_like(divergent)
    steps = torch.zeros(num_samples, dtype=torch.long)
    count, ending, step = 0, Ending.DONE, tuning.step
    try:
        while count < num_samples:
            if count >= RUN.fewest_draws and budget.over():
                ending = Ending.TIME
                break
            number = tuning.steps(count)
            momentum = _noise(start, generator)
            proposal = trajectory(density, state, momentum, step, number)
            state, moves = accept(state, proposal, generator)
            draws[:, count], log_p[:, count] = state.position, state.log_p
            acceptance[:, count], moved[:, count] = proposal.acceptance, moves
            divergent[:, count] = proposal.divergent
            steps[count] = number
            count += 1
            tick(1)
    except KeyboardInterrupt:
        if not count:
            raise
        ending = Ending.INTERRUPTED
    return Chains(
        draws[:, :count],
        log_p[:, :count],
        acceptance[:, :count],
        divergent[:, :count],
        moved[:, :count],
        tuning,
        steps[:count],
        done,
        gradients,
        ending,
    )


def _warm_up(
    density: ScoredDensity,
    state: State,
    generator: torch.Generator,
    warmup: int,
    budget: Budget,
    tick: Callable[[int], object],
) -> tuple[State, Tuning, int, int]:
    """Adapt; return states, tuning, iterations and gradients of each chain."""
    adaptation, gradients = Adaptation.start(state.position), 1
    while adaptation.index < warmup and not budget.over():
        tuning = adaptation.tuning
        number = tuning.steps(adaptation.index)
        momentum = _noise(state.position, generator)
        proposal = trajectory(density, state, momentum, tuning.step, number)
        begin = state
        state, _ = accept(state, proposal, generator)
        duration = number * tuning.step_size
        adaptation = adaptation.updated(begin, proposal, state, duration, warmup)
        gradients += number
        tick(1)
    return state, adaptation.settled, adaptation.index, gradients


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
