"""The draws on which a fit is judged: points with both densities, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.model_run import Evaluation
from pyro_nfvi._pyro_model.subsampling import cover
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.diagnostics._importance import ess, iw_gap
from pyro_nfvi.diagnostics._khat import TailReading, read_tail
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer._recipe import CALL_SIZES, WEIGHTED_DRAWS

if TYPE_CHECKING:
    from pyro_nfvi.diagnostics._psis import PSIS


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
        """Pareto-smoothed weights, or None where weights say nothing; smoothed once."""
        return self._smoothed

    @cached_property
    def _smoothed(self) -> PSIS | None:
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

    def tail(self) -> TailReading:
        """Return the reading of the tail of the weights; unknown where weights say nothing."""
        smoothed = self.smoothed()
        if smoothed is None:
            return TailReading(math.nan, len(self.z))
        share, scored = ess(smoothed.log_weights) / len(self.z), self.log_w
        gap = iw_gap(scored[torch.isfinite(scored)])
        return read_tail(scored, smoothed.khat, effective=share, gap=gap)


def push_chunks(
    density: FlowDensity | NoiseDensity, num: int, draw: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Draw ``num`` points with their log density, in chunks: ``(S, D)`` and ``(S,)``."""
    parts = []
    with torch.no_grad():
        for start in range(0, num, WEIGHTED_DRAWS.rows):
            parts.append(density.push(draw(min(WEIGHTED_DRAWS.rows, num - start))))
    return torch.cat([z for z, _ in parts]), torch.cat([log_q for _, log_q in parts])


def weigh(
    density: FlowDensity | NoiseDensity,
    log_joint: LogJoint,
    num: int,
    generator: torch.Generator | None,
    *,
    budget: Budget = UNLIMITED,
    tick: Callable[[int], object] = lambda _: None,
) -> WeighedDraws:
    """Draw from the density and score the draws by the model, on all data where that is possible.

    Fewer draws than ``num`` come where all data is so much that it takes long, or where the budget
    is spent; some 20 in any case.
    """
    affordable = most_on_all_data(log_joint)
    num = num if affordable < WEIGHTED_DRAWS.fewest_draws else min(num, affordable)
    z, log_q = push_chunks(
        density, num, lambda rows: density.sample_base(rows, generator=generator)
    )
    found, exact = score(log_joint, z, generator, budget, tick)
    done = len(found.log_p)
    return WeighedDraws(z[:done], found.log_p, log_q[:done], found.deterministic, exact)


def most_on_all_data(log_joint: LogJoint) -> int:
    """Return how many draws can be scored on all data; 0 if none can."""
    if not log_joint.subsampled:
        return CALL_SIZES.all_data
    if len(log_joint.subsampled) > 1:
        return 0  # crossed plates would need all pairs of batches
    ((size, count),) = log_joint.subsampled.values()
    batches = len(cover(size, count)[0])
    return (
        0
        if batches > WEIGHTED_DRAWS.batches
        else CALL_SIZES.all_data // (batches * max(1, log_joint.size))
    )


class WholeDensity:
    """The log joint on all data of a model that subsamples: a weighted sum over mini-batches.

    Args:
        log_joint: The model, with one plate that subsamples.

    Cost:
        One evaluation of the log joint for each mini-batch of a cover of the data.
    """

    def __init__(self, log_joint: LogJoint) -> None:
        ((self._name, (size, count)),) = log_joint.subsampled.items()
        self._log_joint = log_joint
        self._index, self._weights = cover(size, count)

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate ``z (N, D)``, with gradients."""
        parts = [weight * self._log_joint(z, batch).double() for weight, batch in self._batches(z)]
        return torch.stack(parts).sum(0)

    def value_and_grad(self, z: Tensor) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient, without a graph."""
        log_p, gradient = torch.zeros(len(z)).to(z).double(), torch.zeros_like(z).double()
        for weight, batch in self._batches(z):
            part, slope = self._log_joint.value_and_grad(z, batch)
            log_p += weight * part.double()
            gradient += weight * slope.double()
        return log_p, gradient

    def _batches(self, z: Tensor) -> Iterator[tuple[float, TensorDict]]:
        for row, weight in zip(self._index.to(z.device), self._weights.tolist()):
            yield weight, {self._name: row}


def whole_density(log_joint: LogJoint, num: int) -> LogJoint | WholeDensity | None:
    """Return the log joint on all data, with gradients; None where that takes too long.

    Args:
        log_joint: The model.
        num: Draws that it is to be called with.
    """
    if not log_joint.subsampled:
        return log_joint
    if (
        most_on_all_data(log_joint) < WEIGHTED_DRAWS.gradient_calls * num
    ):  # it is called some hundred times
        return None
    return WholeDensity(log_joint)


def score(
    log_joint: LogJoint,
    z: Tensor,
    generator: torch.Generator | None,
    budget: Budget = UNLIMITED,
    tick: Callable[[int], object] = lambda _: None,
    *,
    deterministic: bool = True,
) -> tuple[Evaluation, bool]:
    """Score draws ``z (S, D)``; the second says whether on all data, or on one mini-batch.

    Where the budget is spent first, the scores of the first draws alone come back, or those on one
    mini-batch where there is no time for all of them.
    """
    if log_joint.subsampled and most_on_all_data(log_joint) >= len(z):
        total = _on_all_data(log_joint, z, generator, budget, deterministic=deterministic)
        if total is not None:
            tick(len(z))
            return total, True
    if log_joint.subsampled or budget.limit is None:
        found = log_joint.evaluate(
            z,
            log_joint.draw_subsample(generator),
            deterministic=deterministic,
            generator=generator,
        )
        tick(len(z))
        return found, not log_joint.subsampled
    # Few at first: how long they take is not known.
    parts: list[Evaluation] = []
    done, rows = 0, WEIGHTED_DRAWS.piece_draws
    while done < len(z) and not (parts and budget.over()):
        begin = budget.clock()
        part = z[done : done + rows]
        parts.append(log_joint.evaluate(part, {}, deterministic=deterministic, generator=generator))
        pace = max(1e-9, budget.clock() - begin) / rows
        tick(len(parts[-1].log_p))
        done += rows
        rows = max(
            WEIGHTED_DRAWS.piece_draws,
            min(len(z), int(0.5 * min(budget.left(), WEIGHTED_DRAWS.piece_seconds) / pace)),
        )
    log_p = torch.cat([part.log_p for part in parts])
    names = parts[0].deterministic
    fixed = {name: torch.cat([part.deterministic[name] for part in parts]) for name in names}
    return replace(parts[0], log_p=log_p, deterministic=fixed), True


def _on_all_data(
    log_joint: LogJoint,
    z: Tensor,
    generator: torch.Generator | None,
    budget: Budget,
    *,
    deterministic: bool,
) -> Evaluation | None:
    """Score draws on all data, batch by batch; None where there is no time for all batches."""
    ((name, (size, count)),) = log_joint.subsampled.items()
    index, weights = cover(size, count)
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    begin = budget.clock()
    for number, (row, weight) in enumerate(zip(index.to(z.device), weights.tolist())):
        pace = (budget.clock() - begin) / max(1, number)
        if number and not budget.affords((len(index) - number) * pace):
            return None
        found = log_joint.evaluate(z, {name: row}, deterministic=deterministic, generator=generator)
        total += weight * found.log_p.double()
    return replace(found, log_p=total.to(z))
