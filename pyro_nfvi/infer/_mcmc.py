"""Hamiltonian chains side by side in the space that a fit has straightened."""

from __future__ import annotations

import math

import pyro
from torch import Tensor

from pyro_nfvi._budget import Budget
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.chains import run_chains
from pyro_nfvi._mcmc.neutra import PulledBack
from pyro_nfvi._mcmc.starts import choose_starts
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import fresh_seed, stream
from pyro_nfvi._train.engine_faults import attempt
from pyro_nfvi._train.progress import Progress
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.infer._chain_scope import compiled, require_chainable, sampling_scope
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._mcmc_run import MCMCRun, Sampling, make_run
from pyro_nfvi.infer._recipe import CHAINS


def mcmc(
    fit: FittedPosterior,
    *,
    num_samples: int = 1000,
    num_chains: int = 64,
    warmup_steps: int = 200,
    max_seconds: float | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> MCMCRun:
    """Run Hamiltonian chains through the fit; see :meth:`Fit.mcmc`."""
    num_samples = whole("num_samples", num_samples)
    num_chains = whole("num_chains", num_chains, 2)
    warmup_steps = whole("warmup_steps", warmup_steps, 0)
    budget = Budget.start(max_seconds)
    seed = seed_number(seed)
    log_joint = require_chainable(fit)
    numbers = num_samples * num_chains * fit.latent.dim
    if numbers > CHAINS.numbers:
        raise OptionError(
            f"{num_chains} chains of {num_samples} draws of {fit.latent.dim} latents are "
            f"{numbers:.2g} numbers, and {CHAINS.numbers:.2g} are the most: take fewer draws "
            "(num_samples) or chains (num_chains)."
        )
    seed = fresh_seed() if seed is None else seed
    with (
        sampling_scope(fit, seed, "mcmc") as density,
        pyro.validation_enabled(False),
        Progress(progress).stage(
            f"{num_chains} chains", warmup_steps + num_samples, unit="draw"
        ) as tick,
    ):
        target = _pulled_back(compiled(log_joint, budget=budget), density.flow, budget)

        def draw(count: int) -> Tensor:
            return density.sample_base(count).detach()

        starts = choose_starts(target, draw, num_chains)
        device = starts.position.device
        chains = run_chains(
            target,
            starts.position,
            stream(seed, "mcmc", "transitions", device=device),
            num_samples=num_samples,
            warmup=warmup_steps,
            budget=budget,
            tick=tick,
        )
        stats: TensorDict = {
            "diverging": chains.divergent,
            "acceptance_rate": chains.acceptance,
            "n_steps": chains.steps.to(device).expand(num_chains, -1),
        }
        sampling = Sampling(
            method="HMC",
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            warmup=chains.warmup,
            superchains=starts.superchains,
            wide=starts.wide,
            step_size=chains.tuning.step_size,
            length=chains.tuning.length,
            gradients=chains.gradients,
            ending=chains.ending,
            seconds=budget.spent(),
        )
        return make_run(fit, density, chains.draws, stats, sampling, chains.log_p)


def _pulled_back(log_joint: LogJoint, flow: Flow, budget: Budget) -> ScoredDensity:
    """Return the density of base noise, by compiled code where the flow has some."""
    timeout = math.inf if budget.limit is None else budget.left() / 4
    try:
        with attempt("compiling the flow"):
            from pyro_nfvi._engine.compiled_pull_back import CompiledPullBack

            return CompiledPullBack(log_joint, flow, timeout=timeout)
    except Unsupported:
        return PulledBack(log_joint, flow)
