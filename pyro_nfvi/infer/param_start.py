"""Where a model's parameters start: evidence and a Gaussian posterior raised in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import Budget
from pyro_nfvi.gaussian import Normals, Target, whiten
from pyro_nfvi.guides.build import FULL_DIM
from pyro_nfvi.infer.param_ascent import Evidence, raise_evidence
from pyro_nfvi.logjoint import LogJoint

__all__ = ["ParamStart", "start_params"]

#: Most rounds, and the gain in nats below which two of them in a row end it.
_ROUNDS, _ENOUGH = 30, 0.02
#: Steps of the Gaussian in the first round and in later ones, and draws on which parameters climb.
_FIRST, _LATER, _DRAWS = 200, 60, 256
#: Numbers that one run of the model may hold.
_NUMBERS = 3_000_000


@dataclass(frozen=True)
class ParamStart:
    """What came of it.

    Attributes:
        gain: Nats of evidence gained.
        rounds: Rounds that it took.
        converged: Whether rounds gained nothing in the end.
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
    parameters; the parameters climb the importance-weighted evidence of its draws by second-order
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
        on 256 rows.

    Source: Monte Carlo maximum likelihood, Geyer and Thompson 1992, JRSS B 54.
    """
    leaves = list(log_joint.named_parameters().values())
    target = Target(density, like, budget=budget)
    init = log_joint.latent.init_loc.detach()
    now = Normals.around(init[None], 0.1, diagonal=len(init) > FULL_DIM)
    count = max(64, min(_DRAWS, _NUMBERS // max(1, log_joint.size)))
    total, idle, unit, rounds = 0.0, 0, None, 0
    for rounds in range(1, _ROUNDS + 1):
        if idle >= 2 or budget.over():
            rounds -= 1
            break
        steps = _FIRST if rounds == 1 else _LATER
        now, _ = whiten(target, now, num_steps=steps, num_particles=32, generator=generator)
        eps = now.noise(count, generator)
        z, log_q = now.points(eps)[0].to(like), now.log_q(eps)[0]
        climbed = raise_evidence(Evidence(density, z, log_q, leaves), budget=budget)
        total += climbed.gain
        if climbed.units is not None:
            unit = float(climbed.units.min())
        idle = idle + 1 if climbed.gain < _ENOUGH else 0
    return ParamStart(total, rounds, idle >= 2, unit)
