"""Simulation-based calibration of an amortised posterior: ranks over thousands of data sets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.amortised._recipe import JUDGEMENT
from pyro_nfvi.calibration._result import CalibrationRow, CalibrationTable
from pyro_nfvi.calibration._uniformity_tests import bias_test, width_test
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.distributions._flow_density import FlowDensity

#: What a verdict of ranks may say, the best first.
CALIBRATED, NEARLY, WRONG = "calibrated", "nearly calibrated", "not calibrated"


@dataclass(frozen=True, eq=False, repr=False)
class RankCalibration:
    """Result of ``posterior.calibration()``.

    Attributes:
        p: ``Pr_q(theta < truth)`` by site, ``(N, *shape)``; uniform where posteriors are right.
        region: Probability of the smallest region of highest density that holds the truth,
            ``(N,)``; uniform likewise.
        num_draws: Draws from each posterior.
        level: Largest chance of a false alarm, over all numbers and tests together.
        seconds: Time of all.
    """

    p: TensorDict
    region: Tensor
    num_draws: int
    level: float
    seconds: float = 0.0

    @property
    def num_simulations(self) -> int:
        """Data sets."""
        return len(self.region)

    @cached_property
    def rows(self) -> tuple[CalibrationRow, ...]:
        """Results by number, sites in the model's order, and of the regions last."""
        count = sum(value[0].numel() for value in self.p.values())
        limit = self.level / (2 * count + 1)  # two tests of each number, one of the regions
        rows = []
        for name, value in self.p.items():
            mean, (bias, side), (width, sense) = value.mean(0), bias_test(value), width_test(value)
            for index in itertools.product(*map(range, value.shape[1:])):
                words = []
                if bias[index] < limit:
                    words.append("too low" if side[index] > 0 else "too high")
                if width[index] < limit:
                    words.append("too narrow" if sense[index] > 0 else "too wide")
                label = f"{name}[{', '.join(map(str, index))}]" if index else name
                numbers = float(mean[index]), float(bias[index]), float(width[index])
                rows.append(CalibrationRow(label, *numbers, ", ".join(words)))
        return tuple(rows)

    @cached_property
    def region_test(self) -> tuple[float, str]:
        """p-value of the regions' uniformity, and what is wrong with them; empty for nothing."""
        # |2p - 1| of (1 + r) / 2 is r itself.
        value, sense = width_test((1 + self.region) / 2)
        count = sum(part[0].numel() for part in self.p.values())
        wrong = float(value) < self.level / (2 * count + 1)
        word = ("too narrow" if sense > 0 else "too wide") if wrong else ""
        return float(value), word

    @cached_property
    def largest(self) -> float:
        """Largest distance of a distribution of ranks from the uniform one, over all numbers."""
        columns = [value.flatten(1) if value.dim() > 1 else value[:, None]
                   for value in (*self.p.values(), self.region)]  # fmt: skip
        values = torch.cat(columns, 1).double().sort(0).values
        steps = torch.arange(1, len(values) + 1, dtype=torch.float64)[:, None] / len(values)
        above, below = (steps - values).amax(0), (values - steps + 1 / len(values)).amax(0)
        return float(torch.maximum(above, below).max())

    @property
    def verdict(self) -> Verdict:
        """``"calibrated"``, ``"nearly calibrated"`` or ``"not calibrated"``, with ``.reasons``.

        Exact posteriors are called something else than calibrated with a probability of at most
        ``level``. Nearly calibrated are those that tests tell from exact ones, but whose intervals
        of any level hold the truth in that share of data sets to within 5 %.
        """
        wrong = [
            f"{row.name} is {row.word} (bias p = {row.bias:.2g}, width p = {row.width:.2g})"
            for row in self.rows
            if row.word
        ]
        value, word = self.region_test
        if word:
            wrong.append(f"regions of highest density are {word} (p = {value:.2g})")
        within = f"intervals hold the truth to within {100 * self.largest:.1f} % of their level"
        if not wrong:
            tested = f"no test rejects at {self.level:g} over {len(self.rows)} numbers"
            return Verdict(CALIBRATED, [tested, within], "Nothing.")
        if self.largest < JUDGEMENT.near:
            return Verdict(NEARLY, [within, *wrong], "More simulations would help, if they must.")
        return Verdict(WRONG, [*wrong, within], _NEXT)

    def coverage(self, level: float) -> float:
        """Return the share of data sets whose region of highest density holds the truth.

        ``level`` itself, if posteriors are right.
        """
        return float((self.region <= level).double().mean())

    def summary(self) -> CalibrationTable:
        """Return the table: mean of p, p-values, and what is wrong, for each number."""
        levels = ", ".join(f"{100 * self.coverage(one):.1f} %" for one in (0.5, 0.9))
        notes = [
            f"{self.num_simulations} data sets, {self.num_draws} draws of each, in "
            f"{self.seconds:.1f} s: {self.verdict}",
            f"regions of 50 and 90 % of the posterior hold the truth in {levels} of them",
        ]
        return CalibrationTable(self.rows, "\n".join(notes))

    def plot(self, **options: Any) -> Any:
        """Plot the histograms of p; see :func:`pyro_nfvi.plots.plot_calibration`."""
        from pyro_nfvi.plots._calibration import plot_calibration

        title = f"Calibration over {self.num_simulations} data sets"
        return plot_calibration(self, **{"title": title, **options})

    def __repr__(self) -> str:
        return f"RankCalibration({str(self.verdict)!r}, {self.num_simulations} data sets)"


_NEXT = (
    "Simulate more (num_simulations), or give a larger flow or a summary network that fits the "
    "data; posterior.refine(data) repairs single posteriors of a model with a density."
)


@torch.no_grad()
def rank(
    density: FlowDensity,
    latent: LatentSpace,
    z: Tensor,
    context: Tensor,
    *,
    num_draws: int,
    level: float,
    seed: int,
    seconds: float = 0.0,
) -> RankCalibration:
    """Rank the truths ``z (N, D)`` among draws from the posteriors at ``context (N, C)``.

    Cost:
        One pass of the flow for ``N * num_draws`` draws, and one inverse for N.
    """
    noise = stream(seed, "calibration draws", device=z.device)
    places = stream(seed, "calibration places")
    rows = max(1, JUDGEMENT.rank_size // (num_draws * max(latent.dim, context.shape[-1])))
    found: list[TensorDict] = []
    regions = []
    for begin in range(0, len(z), rows):
        truth, given = z[begin : begin + rows], context[begin : begin + rows]
        draws, log_q = density.rsample_and_log_prob((num_draws,), given, generator=noise)
        own = density.log_prob(truth, given)
        values, truths = latent.constrain(draws)[0], latent.constrain(truth)[0]
        found.append({name: _p(values[name], truths[name], places) for name in values})
        regions.append(_p(-log_q, -own, places))
    p = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return RankCalibration(p, torch.cat(regions), num_draws, level, seconds)


def _p(draws: Tensor, truth: Tensor, places: torch.Generator) -> Tensor:
    """Share of draws ``(L, *b)`` below the truth ``(*b,)``, between the ranks at random."""
    draws, truth = draws.cpu(), truth.cpu()
    less, same = (draws < truth).sum(0).double(), (draws == truth).sum(0).double()
    # The rank of the truth among draws of its own distribution is uniform over L + 1 places; with
    # a point drawn within the place, p is uniform and has no ties.
    place = torch.rand(truth.shape, generator=places, dtype=torch.float64)
    return ((less + place * (same + 1)) / (len(draws) + 1)).clamp(0, 1)
