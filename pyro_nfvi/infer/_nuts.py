"""Pyro's NUTS in the space that a flow has straightened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from pyro_nfvi._chain_rule import scored
from pyro_nfvi._mcmc.chains import Ending
from pyro_nfvi._progress_bar import ProgressBar, progress_bar
from pyro_nfvi._random import fresh_seed
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._chain_scope import compiled, require_chainable, sampling_scope
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._mcmc_run import MCMCRun, Sampling, make_run


def to_nuts(
    fit: FittedPosterior,
    *,
    num_samples: int = 500,
    warmup_steps: int = 300,
    num_chains: int = 2,
    seed: int | None = None,
    progress: bool = True,
) -> MCMCRun:
    """Run NUTS through the flow; see :meth:`Fit.to_nuts`."""
    num_samples = whole("num_samples", num_samples)
    num_chains = whole("num_chains", num_chains)
    warmup_steps = whole("warmup_steps", warmup_steps, 0)
    log_joint = require_chainable(fit)
    begin = time.monotonic()
    seed = fresh_seed() if seed is None else seed
    with sampling_scope(fit, seed, "nuts") as density:
        flow = density.flow
        log_joint = compiled(log_joint, steps=num_chains * (warmup_steps + num_samples))

        def potential(point: TensorDict) -> Tensor:
            z, ladj = flow(point["eps"].unsqueeze(0))
            return -(scored(lambda point: log_joint(point, {}), z) + ladj).sum()

        parts: list[Tensor] = []
        diverging = torch.zeros(num_chains, num_samples, dtype=torch.bool)
        for chain in range(num_chains):
            # Each chain starts at a draw of the guide, which is a typical point of the flow.
            start = _start(density.sample_base, potential)
            told = f"NFVI: NUTS, chain {chain + 1} of {num_chains}"
            total = warmup_steps + num_samples
            with progress_bar(told, total, unit="draw", show=progress) as bar:
                drawn, found = _chain(potential, start, warmup_steps, num_samples, bar)
            parts.append(drawn)
            diverging[chain, found] = True
        sampling = Sampling(
            method="NUTS",
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            warmup=warmup_steps,
            superchains=num_chains,
            wide=0,
            step_size=math.nan,
            length=math.nan,
            gradients=None,
            ending=Ending.DONE,
            seconds=time.monotonic() - begin,
        )
        return make_run(fit, density, torch.stack(parts), {"diverging": diverging}, sampling)


def _chain(
    potential: Callable[[TensorDict], Tensor],
    start: Tensor,
    warmup_steps: int,
    num_samples: int,
    bar: ProgressBar,
) -> tuple[Tensor, list[int]]:
    """Run Pyro's kernel; return its draws, and the numbers of those of divergent transitions.

    Without Pyro's ``MCMC`` around it, which replaces handlers of the logger ``pyro.infer.mcmc``.
    """
    kernel = NUTS(potential_fn=potential)
    point, drawn = {"eps": start}, []
    kernel.initial_params = point
    with poutine.block(), pyro.validation_enabled(False):
        kernel.setup(warmup_steps)
        for step in range(warmup_steps + num_samples):
            point = kernel.sample(point)
            if step >= warmup_steps:
                drawn.append(point["eps"])
            bar.update()
    found = [int(index) for index in kernel.diagnostics()["divergences"]]
    return torch.stack(drawn), [index for index in found if 0 <= index < num_samples]


def _start(draw: Callable[[int], Tensor], potential: Callable[[TensorDict], Tensor]) -> Tensor:
    """A draw of the base at which the model can be scored."""
    for eps in _rows(draw, 100):
        with torch.no_grad():
            if bool(torch.isfinite(potential({"eps": eps}))):
                return eps
    raise ModelError(
        "NUTS found no start: the model gives density 0 to 100 draws of the fit. The fit is far "
        "from the posterior; see fit.report."
    )


def _rows(draw: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
    for _ in range(count):
        yield draw(1)[0].detach()
