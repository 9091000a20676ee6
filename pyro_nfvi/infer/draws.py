"""The draws on which a fit is judged: points with both densities, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.density import FlowDensity
from pyro_nfvi.diagnostics import ess, psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.logjoint import LogJoint
from pyro_nfvi.mixture import MixtureDensity

if TYPE_CHECKING:
    from pyro_nfvi.diagnostics import PSIS

__all__ = ["WeighedDraws", "push_chunks", "weigh"]

#: Rows pushed through the flow at once.
_ROWS = 4096


@dataclass(frozen=True)
class WeighedDraws:
    """Draws from the fit, scored by the model and by the guide.

    Attributes:
        z: Unconstrained draws ``(S, D)``.
        log_p: Log joint of the model with the Jacobian ``(S,)``, in nats.
        log_q: Log density of the guide ``(S,)``, in nats.
        deterministic: Values of the deterministic sites ``(S, *shape)``.
        exact: Whether ``log_p`` saw all data. Scored on subsamples, the weights are too noisy
            to judge by.
    """

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    deterministic: TensorDict = field(default_factory=dict)
    exact: bool = True

    @property
    def log_w(self) -> Tensor:
        """Log importance weights; a draw that the model could not score has -inf."""
        log_w = self.log_p - self.log_q
        return torch.where(log_w < torch.inf, log_w, torch.full_like(log_w, -torch.inf))

    @property
    def num_bad(self) -> int:
        """Draws without a finite weight."""
        return int((~torch.isfinite(self.log_p - self.log_q)).sum())

    def elbo(self) -> tuple[float, float]:
        """Mean log weight and its standard error; -inf if a draw is impossible under the model."""
        log_w = self.log_w.double()
        return float(log_w.mean()), float(log_w.std()) / math.sqrt(len(log_w))

    def smoothed(self) -> PSIS | None:
        """Pareto-smoothed weights, or None where weights say nothing."""
        if not self.exact:
            return None
        try:
            return psis(self.log_w)
        except WeightError:
            return None

    def quality(self) -> tuple[float, float]:
        """``(khat, ess)``; NaN where weights say nothing."""
        smoothed = self.smoothed()
        if smoothed is None:
            return math.nan, math.nan
        return smoothed.khat, ess(smoothed.log_weights)


def push_chunks(
    density: FlowDensity | MixtureDensity, num: int, draw: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Draw ``num`` points with their log density, in chunks: ``(S, D)`` and ``(S,)``."""
    parts = []
    with torch.no_grad():
        for start in range(0, num, _ROWS):
            parts.append(density.push(draw(min(_ROWS, num - start))))
    return torch.cat([z for z, _ in parts]), torch.cat([log_q for _, log_q in parts])


def weigh(
    density: FlowDensity | MixtureDensity,
    log_joint: LogJoint,
    num: int,
    generator: torch.Generator | None,
) -> WeighedDraws:
    """Draw from the density and score the draws by the model."""
    z, log_q = push_chunks(
        density, num, lambda rows: density.sample_base(rows, generator=generator)
    )
    found = log_joint.evaluate(z, log_joint.draw_subsample(generator), generator=generator)
    return WeighedDraws(z, found.log_p, log_q, found.deterministic, not log_joint.subsampled)
