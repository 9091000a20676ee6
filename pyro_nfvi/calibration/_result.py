"""Result of simulation-based calibration: probabilities, tests of them, and every fit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import torch

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.calibration._recalibration import label, recalibrated
from pyro_nfvi.calibration._recipe import CALIBRATION
from pyro_nfvi.calibration._uniformity_tests import bias_test, width_test
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._fit import Fit

_HEAD = ("mean p", "bias p-value", "width p-value")


@dataclass(frozen=True)
class SimulatedFit:
    """One fit to simulated data.

    Attributes:
        index: Number of the simulation, from 0.
        seed: Seed of its parameters and data, of its fit as well.
        verdict: ``fit.verdict``, empty if the fit failed.
        khat: Tail of its importance weights.
        elbo: Its bound, in nats.
        steps: Steps that it took.
        why_stopped: Why they ended.
        seconds: Time that it took.
        error: Why it failed; empty if it did not.
        warnings: Names of the warnings that came with it.
    """

    index: int
    seed: int
    verdict: str = ""
    khat: float = float("nan")
    elbo: float = float("nan")
    steps: int = 0
    why_stopped: str = ""
    seconds: float = 0.0
    error: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationRow:
    """Result for one number.

    Attributes:
        name: Its name, as in ``theta[3]``.
        mean: Mean of p; 1/2 without bias.
        bias: p-value of symmetry about 1/2.
        width: p-value of the width.
        word: ``""``, or what is wrong: ``too low``, ``too high``, ``too narrow``, ``too wide``.
    """

    name: str
    mean: float
    bias: float
    width: float
    word: str


@dataclass(frozen=True)
class CalibrationTable(Mapping[str, CalibrationRow]):
    """A row for each number, by name; ``print`` shows it.

    Attributes:
        rows: The rows, sites in the model's order.
        note: Lines below the table.
    """

    rows: tuple[CalibrationRow, ...]
    note: str = ""

    def __getitem__(self, name: str) -> CalibrationRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row is called {name!r}; there are {[row.name for row in self.rows]}")

    def __iter__(self) -> Iterator[str]:
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=4)
        lines = [" " * width + "".join(f"{head:>15}" for head in _HEAD) + "  the fit is"]
        for row in self.rows:
            numbers = f"{row.mean:>15.3f}{row.bias:>15.3g}{row.width:>15.3g}"
            lines.append(f"{row.name:<{width}}{numbers}  {row.word or 'fine'}")
        return "\n".join([*lines, self.note])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


@dataclass(frozen=True, eq=False, repr=False)
class VSBC:
    """Result of :func:`pyro_nfvi.vsbc`.

    Attributes:
        p: ``Pr_q(theta < theta_0)`` by site, ``(fits, *shape)``, fits that failed left out;
            uniform between 0 and 1 where fits are right.
        truth: The drawn parameters of the same fits, likewise.
        fits: Every fit that was tried, those that failed too, in the order of the simulations.
        num_simulations: How many were asked for.
        level: Largest chance of a false alarm, over all numbers together.
        reweighted: Whether draws were weighted.
        interrupted: Whether Ctrl-C came.
        num_workers: Processes that ran the fits; 0 where an executor had them.
        seed: Seed of all.
        seconds: Time of all.
        note: Why the fits ran in one process, if they did against the request.
        scores: Distances of the truths from the fits' medians, in half widths, by site; see
            :meth:`intervals`.
    """

    p: TensorDict
    truth: TensorDict
    fits: tuple[SimulatedFit, ...]
    num_simulations: int
    level: float
    reweighted: bool
    interrupted: bool
    num_workers: int
    seed: int
    seconds: float
    note: str = ""
    scores: TensorDict = field(default_factory=dict)

    @property
    def failed(self) -> tuple[SimulatedFit, ...]:
        """Fits without draws; their ``.error`` says why."""
        return tuple(fit for fit in self.fits if fit.error)

    @property
    def num_done(self) -> int:
        """Fits whose draws count."""
        return len(self.fits) - len(self.failed)

    @cached_property
    def rows(self) -> tuple[CalibrationRow, ...]:
        """Results by number, sites in the model's order."""
        if self.num_done == 0:
            return ()
        count = sum(value[0].numel() for value in self.p.values())
        limit = self.level / (2 * count)  # two tests of each number (Bonferroni)
        rows = []
        for name, value in self.p.items():
            mean, (bias, side), (width, sense) = value.mean(0), bias_test(value), width_test(value)
            for index in itertools.product(*map(range, value.shape[1:])):
                words = []
                if bias[index] < limit:
                    words.append("too low" if side[index] > 0 else "too high")
                if width[index] < limit:
                    words.append("too narrow" if sense[index] > 0 else "too wide")
                rows.append(
                    CalibrationRow(
                        label(name, index),
                        float(mean[index]),
                        float(bias[index]),
                        float(width[index]),
                        ", ".join(words),
                    )
                )
        return tuple(rows)

    @property
    def verdict(self) -> Verdict:
        """``"calibrated"``, ``"not calibrated"`` or ``"not known"``, with ``.reasons``.

        Not known below 20 fits, or where more than 5 % of them failed. Right fits are called
        not calibrated with a probability of at most ``level``.
        """
        wrong = [
            f"{row.name} is {row.word} (bias p = {row.bias:.2g}, width p = {row.width:.2g})"
            for row in self.rows
            if row.word
        ]
        if wrong:
            return Verdict("not calibrated", wrong, _NEXT_WRONG)
        failed = len(self.failed)
        if failed > CALIBRATION.failed_share * len(self.fits):
            lost = f"{failed} of {len(self.fits)} fits failed"
            return Verdict("not known", [lost, *self._errors()], _NEXT_FAILED)
        if self.num_done < CALIBRATION.fewest_fits:
            few = f"only {self.num_done} fits were done, fewer than {CALIBRATION.fewest_fits}"
            return Verdict("not known", [few], "Ask for more simulations.")
        fine = f"no test rejects at {self.level:g} over {len(self.rows)} numbers"
        return Verdict("calibrated", [fine, *self._errors()], "Nothing.")

    def summary(self) -> CalibrationTable:
        """Return the table: mean of p, p-values, and what is wrong, for each number."""
        return CalibrationTable(self.rows, "\n".join(self._notes()))

    def intervals(self, fit: Fit, *, level: float = 0.9, everywhere: bool = False) -> TensorDict:
        r"""Return central intervals of a fit, recalibrated where a test rejects.

        A number of which no test rejects keeps the fit's own interval, between its quantiles. For
        the others, and for all with ``everywhere``, the ends are as many half widths away from the
        median as the truths of the simulations were: with the order statistics :math:`s_{(r)}` of
        ``scores``, :math:`r = \lfloor (N+1)\alpha/2 \rfloor`,

        .. math:: \bigl[m + s_{(r)}\, w,\; m + s_{(N+1-r)}\, w\bigr]

        where w is the half width on that side. Such an interval covers a truth that is exchangeable
        with the simulated ones with a probability of ``level`` or more, however wrong the fit is,
        as long as it is wrong in the same way.

        Args:
            fit: A fit of the same model, made with the same options.
            level: Coverage.
            everywhere: Recalibrate every number.

        Returns:
            Lower and upper ends by site, ``(2, *shape)``.

        Raises:
            OptionError: The fit has other sites, too few simulations were done for the level
                (2 / (1 - level) - 1 are needed), or the level is not between 0 and 1.

        Source: Vovk, Gammerman & Shafer 2005, section 2.2 (coverage); the aim is that of Cai,
        Greengard, Goodrich & Gelman 2026, arXiv:2603.20068.
        """
        if isinstance(level, bool) or not isinstance(level, float) or not 0 < level < 1:
            raise OptionError(f"level is a number between 0 and 1; got {level!r}.")
        off = {row.name for row in self.rows if row.word or everywhere}
        return recalibrated(fit, self.scores, off, level, reweighted=self.reweighted)

    def plot(self, **options: Any) -> Any:
        """Plot the histograms of p; see :func:`pyro_nfvi.plots.plot_calibration`."""
        from pyro_nfvi.plots._calibration import plot_calibration

        return plot_calibration(self, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.verdict)!r}, {self._counts()})"

    # -------------------------------------------------------------------------- in words

    def _counts(self) -> str:
        asked = self.num_simulations
        text = f"{self.num_done} fits" + (f" of {asked}" if self.num_done < asked else "")
        if self.failed:
            text += f", {len(self.failed)} failed"
        return text + (", interrupted" if self.interrupted else "")

    def _place(self) -> str:
        if not self.num_workers:
            return "an executor"
        return f"{self.num_workers} process{'es' if self.num_workers > 1 else ''}"

    def _notes(self) -> list[str]:
        kinds = Counter(fit.verdict for fit in self.fits if not fit.error)
        each = ", ".join(f"{count} {word!r}" for word, count in kinds.most_common())
        lines = [
            f"{self._counts()}, in {self.seconds:.1f} s over {self._place()}"
            f"{'; draws reweighted' if self.reweighted else ''}: {self.verdict}",
            f"verdicts of the single fits: {each or 'none'}",
            *self._errors(),
        ]
        warned = Counter(name for fit in self.fits for name in fit.warnings)
        lines += [f"{name} in {count} fits" for name, count in warned.most_common()]
        return [*lines, self.note] if self.note else lines

    def _errors(self) -> list[str]:
        kinds = Counter(fit.error for fit in self.failed)
        return [f"{count} failed: {error}" for error, count in kinds.most_common(5)]


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorSBC(VSBC):
    """Result of :func:`pyro_nfvi.posterior_sbc`: as :class:`VSBC`, at the data of one fit.

    ``truth`` holds draws of the fit to the observed data, and ``p`` where they lie among the draws
    of fits to observed and replicated data together.
    """


_NEXT_WRONG = (
    "Give the fits more steps or a larger flow, or write the model in another parametrisation. "
    "With reweighted=True it can be seen whether importance weights repair it."
)
_NEXT_FAILED = "Mend what makes fits fail first; those that did not are no fair sample."


def stacked(parts: list[TensorDict]) -> TensorDict:
    """Stack the same sites of several fits."""
    if not parts:
        return {}
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
