"""Parameter start: evidence and a Gaussian posterior raised in turn, before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.infer._recipe import CALL_SIZES, GAPS, PARAMETER_START, PARAMETER_START_LOOP
from pyro_nfvi.infer._stages.parameter_ascent import Evidence, raise_evidence


@dataclass(frozen=True)
class ParamStart:
    """Result of the rounds.

    Attributes:
        gain: Nats of evidence gained.
        rounds: Rounds that it took.
        converged: True if rounds gained nothing in the end.
        unit: The smallest of the parameters' own units; None where they are unknown.
    """

    gain: float
    rounds: int
    converged: bool
    unit: float | None


def start_params(
    log_joint: LogJoint,
    density: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    generator: torch.Generator,
    budget: Budget,
) -> ParamStart:
    r"""Move the model's parameters to where the evidence is highest, as a Gaussian sees it.

    In turn: whitened natural-gradient ascent fits a Gaussian to the posterior under the present
    parameters; the parameters ascend the importance-weighted evidence of its draws by second-order
    steps (:func:`raise_evidence`), as far as the weights reach. Unlike EM, whose steps shrink with
    the share of what is known of the latents, the evidence counts how the posterior moves.

    Args:
        log_joint: The model.
        density: Its log joint on all data.
        like: A tensor of the guide's dtype and device.
        generator: Source of the noise.
        budget: Time.

    Cost:
        Up to 30 rounds of 60 calls of the model with 32 rows, and of some ten second-order steps
        on 256 rows; where every row is a run of its own, 15 rounds of 20 with 8, and 64.

    Source: Monte Carlo maximum likelihood, Geyer and Thompson 1992, JRSS B 54.
    """
    leaves = list(log_joint.named_parameters().values())
    target = Target(density, like, budget=budget)
    init = log_joint.latent.init_loc.detach()
    sizes = PARAMETER_START_LOOP if log_joint.how == "loop" else PARAMETER_START
    now = Normals.around(init[None], sizes.width, diagonal=len(init) > GUIDES.full_dim)
    count = max(sizes.fewest_draws, min(sizes.draws, CALL_SIZES.ascent // max(1, log_joint.size)))
    total, idle, unit, rounds = 0.0, 0, None, 0
    for rounds in range(1, sizes.rounds + 1):
        if idle >= sizes.idle or budget.over():
            rounds -= 1
            break
        now, _ = natural_gradient_ascent(
            target,
            now,
            num_steps=sizes.first_steps if rounds == 1 else sizes.later_steps,
            num_particles=sizes.particles,
            generator=generator,
        )
        eps = now.noise(count, generator)
        z, log_q = now.points(eps)[0].to(like), now.log_q(eps)[0]
        ascent = raise_evidence(Evidence(density, z, log_q, leaves), generator, budget=budget)
        total += ascent.gain
        if ascent.units is not None:
            unit = float(ascent.units.min())
        idle = idle + 1 if ascent.gain < GAPS.negligible else 0
    return ParamStart(total, rounds, idle >= sizes.idle, unit)
