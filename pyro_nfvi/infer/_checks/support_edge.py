"""Edges of the support inside the unconstrained space, where a density falls to zero at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.infer._recipe import SUPPORT_EDGE
from pyro_nfvi.infer._weighted_draws import WeighedDraws

#: Draws that are scored, by how particles are evaluated.
EDGE_ROWS = {"plate": SUPPORT_EDGE.draws, "vmap": SUPPORT_EDGE.draws, "loop": 0}


@dataclass(frozen=True)
class Edge:
    """An edge of the support among draws of a fit.

    Attributes:
        share: Share of the draws, moved outwards by a factor, where the density is zero.
        reach: The factor.
        drop: Nats by which the density at the highest place found on the edge lies below that of
            the draw nearest to the middle.
    """

    share: float
    reach: float
    drop: float


def support_edge(log_joint: LogJoint, draws: WeighedDraws, seed: int) -> Edge | None:
    r"""Look for places about the draws where the density falls to zero at once.

    Draws are moved away from one in the middle, by a factor. Where one has no density then, the
    straight way to it from the middle is bisected, to the last point that has one. In a smooth tail
    the density there is next to nothing; at an edge it is not.

    Args:
        log_joint: The model.
        draws: Draws of the fit.
        seed: Seed of the fit.

    Returns:
        The edge; None where there is none that holds mass.

    Cost:
        500 rows of the model for each of some factors, and 20 for each of up to 50 points without a
        density.
    """
    given = SUPPORT_EDGE
    fine = draws.z[torch.isfinite(draws.log_p)]
    if log_joint.in_parts or len(fine) < 2:
        return None
    away = fine - fine.median(0).values
    middle = fine[(away / away.abs().median(0).values.clamp(min=1e-12)).square().sum(-1).argmin()]
    noise = stream(seed, "support edge", device=fine.device)
    chosen = torch.randint(len(fine), (given.draws,), generator=noise, device=fine.device)
    level = float(_log_p(log_joint, middle[None])[0])
    for reach in given.reaches:
        far = middle + reach * (fine[chosen] - middle)
        zero = _log_p(log_joint, far) == -torch.inf
        if not bool(zero.any()):
            continue
        drop = level - _highest_on_edge(log_joint, middle, far[zero][: given.bisected])
        if drop <= given.most_drop:
            return Edge(float(zero.double().mean()), reach, drop)
    return None


def _highest_on_edge(log_joint: LogJoint, middle: Tensor, outside: Tensor) -> float:
    """Return the highest log density on straight ways to where there is none, at their ends."""
    inside = middle.expand_as(outside)
    for _ in range(SUPPORT_EDGE.bisections):
        between = 0.5 * (inside + outside)
        lost = (_log_p(log_joint, between) == -torch.inf).unsqueeze(-1)
        inside, outside = torch.where(lost, inside, between), torch.where(lost, between, outside)
    return float(_log_p(log_joint, inside).max())


def _log_p(log_joint: LogJoint, z: Tensor) -> Tensor:
    with torch.no_grad():
        return log_joint(z)
