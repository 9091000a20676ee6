"""Pyro's NUTS in the space that a flow has straightened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_nfvi._chain_rule import scored
from pyro_nfvi._mcmc.chains import Ending
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
            mcmc = MCMC(
                NUTS(potential_fn=potential),
                num_samples=num_samples,
                warmup_steps=warmup_steps,
                initial_params={"eps": start},
                disable_progbar=not progress,
            )
            with pyro.validation_enabled(False):
                mcmc.run()
            parts.append(mcmc.get_samples()["eps"])
            found = (mcmc._diagnostics[0] or {}).get("divergences", [])
            places = [int(index) for index in found if 0 <= int(index) < num_samples]
            diverging[chain, places] = True
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
