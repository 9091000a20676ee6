"""Modes that the Gaussian stage came upon, and whether the fitted guide reaches them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.density import FlowDensity
from pyro_nfvi.gaussian import GaussianFit, Normals, Target, other_modes
from pyro_nfvi.infer.draws import WeighedDraws
from pyro_nfvi.logjoint import LogJoint

__all__ = ["missed_modes", "modes_of"]

#: Draws from each mode, and how many nats the guide's density may be too low there.
_DRAWS, _SHORT = 64, 3.0
#: Share of the mass below which a missed mode is not worth a word, in nats.
_NEGLIGIBLE = 5.0


def modes_of(log_joint: LogJoint, like: Tensor, found: GaussianFit) -> Normals | None:
    """Return the Gaussians of other modes than the best; None where there is no other."""
    index = other_modes(Target(log_joint, like), found)
    return found.starts.take(index) if len(index) else None


def missed_modes(
    density: FlowDensity, log_joint: LogJoint, modes: Normals | None, draws: WeighedDraws
) -> list[str]:
    """Say which modes the guide puts too little mass on, a line each."""
    if modes is None:
        return []
    elbo, lines = draws.elbo()[0], []
    generator = torch.Generator(modes.loc.device).manual_seed(0)
    eps = modes.noise(_DRAWS, generator)
    points, log_n = modes.points(eps).to(draws.z), modes.log_q(eps)
    for place, log_mode in zip(points, log_n, strict=True):
        try:
            with torch.no_grad():
                log_p = log_joint(place, {}).double()
                log_q = density.log_prob(place).double()
        except (RuntimeError, ValueError) as error:  # not at all points there
            lines.append(f"another mode was found, and could not be compared: {error}")
            continue
        bound = float((log_p - log_mode).nanmean())
        short = float((log_p - log_q).nanmean()) - elbo
        if short > _SHORT and bound > elbo - _NEGLIGIBLE:
            lines.append(
                f"another mode was found, with a bound of {bound:.2f} nats, to which the guide "
                f"gives {short:.1f} nats too little density: it is missed"
            )
    return lines
