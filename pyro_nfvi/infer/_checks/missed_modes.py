"""Modes that a fitted guide misses."""

from __future__ import annotations

import torch

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import NESTED_MASS
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.infer._checks.label_switching import Scored
from pyro_nfvi.infer._recipe import MODE_CHECK
from pyro_nfvi.infer._weighted_draws import WeighedDraws


def missed_modes(
    density: Scored,
    log_joint: LogJoint,
    modes: Normals | None,
    draws: WeighedDraws,
    seed: int,
    budget: Budget = UNLIMITED,
) -> list[str]:
    """Say which modes the guide puts too little mass on, a line each.

    Modes for which there is no time left are not looked at.
    """
    if modes is None:
        return []
    elbo, lines = draws.elbo()[0], []
    eps = modes.noise(MODE_CHECK.draws, stream(seed, "missed modes", device=modes.loc.device))
    points, log_n = modes.points(eps).to(draws.z), modes.log_q(eps)
    for place, log_mode in zip(points, log_n, strict=True):
        if budget.over():
            break
        try:
            with torch.no_grad():
                log_p = log_joint(place, {}).double()
                log_q = density.log_prob(place).double()
        except (RuntimeError, ValueError) as error:  # not at all points there
            lines.append(f"another mode was found, and could not be compared: {error}")
            continue
        bound = float((log_p - log_mode).nanmean())
        short = float((log_p - log_q).nanmean()) - elbo
        if short > NESTED_MASS.outside and bound > elbo - MODE_CHECK.negligible:
            lines.append(
                f"another mode was found, with a bound of {bound:.2f} nats, to which the guide "
                f"gives {short:.3g} nats too little density: it is missed"
            )
    return lines
