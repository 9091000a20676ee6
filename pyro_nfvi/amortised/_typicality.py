"""Distance of data from simulations: how unusual they are for the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi.amortised._recipe import JUDGEMENT


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    r"""Simulations, and the distance of each to its k-th neighbour among the others.

    Data whose distance is among the largest are unusual for the model:

    .. math:: p = \frac{1 + \#\{i : d_i \ge d\}}{1 + n}

    Attributes:
        points: Simulations ``(n, K)``, in units of their spread.
        distances: Their own distances ``(n,)``.
    """

    points: Tensor
    distances: Tensor

    @classmethod
    def of(cls, points: Tensor, seed: int) -> Neighbourhood:
        """Take ``JUDGEMENT.reference`` of the points at random."""
        count = min(len(points), JUDGEMENT.reference)
        order = torch.randperm(len(points), generator=stream(seed, "typicality"))
        kept = points[order[:count].to(points.device)].detach()
        # A point is its own nearest neighbour.
        return cls(kept, _distances(kept, kept, JUDGEMENT.neighbour + 1))

    def p_value(self, point: Tensor) -> float:
        """Return the chance that a simulation is at least as far out as ``point (K,)``."""
        found = _distances(point.unsqueeze(0), self.points, JUDGEMENT.neighbour)
        beyond = int((self.distances >= found).sum())
        return (1 + beyond) / (1 + len(self.distances))


def _distances(points: Tensor, others: Tensor, neighbour: int) -> Tensor:
    away = torch.cdist(
        points.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return away.kthvalue(min(neighbour, len(others)), dim=1).values
