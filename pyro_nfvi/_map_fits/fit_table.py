"""``FitTable``: the results of many fits, row by row, and what they say together."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from pyro_nfvi._map_fits.job import FitRecord
from pyro_nfvi._map_fits.posterior_draws import posterior_draws
from pyro_nfvi._map_fits.spec import FitSpec
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.diagnostics._convergence import rank_rhat
from pyro_nfvi.errors import FileError, ModelError, OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._loading import load
from pyro_nfvi.infer._plate_fit import PlateFit

#: Labels by which fits are taken together.
_SEED, _PARTS = "seed", ("fold", "group")


@dataclass(frozen=True, eq=False)
class FitRow:
    """One of many fits.

    Attributes:
        spec: What it was made from.
        record: The fit in numbers.
        path: File of the fit; None if it failed.
        error: Why it failed; empty if it did not.
        attempts: How often it was begun; 0 for a result that was there, or a fit that Ctrl-C
            prevented.
        lpd: Log predictive density of each held-out row ``(n,)``, in nats; None without any.
        lpd_error: Its standard error over the fit's draws ``(n,)``.
        joint_lpd: Log predictive density of all held-out rows together, in nats.
    """

    spec: FitSpec
    record: FitRecord
    path: Path | None = None
    error: str = ""
    attempts: int = 0
    lpd: Tensor | None = None
    lpd_error: Tensor | None = None
    joint_lpd: float = math.nan
    _folder: object = field(default=None, repr=False)  # holds the files while rows are there

    def load(self, *, with_model: bool = True) -> Fit | PlateFit:
        """Read the fit from its file.

        Args:
            with_model: Give it its model and data, for predictions and the like. A fit of the rows
                of plates has to have them.

        Raises:
            ModelError: The fit failed.
            FileError: The file is gone, or its flow has to be given: ``nfvi.load(row.path, ...)``.
        """
        if self.path is None:
            raise ModelError(f"There is no fit to read, since it failed: {self.error}")
        guide = self.spec.options.get("guide")
        flow = copy.deepcopy(guide) if isinstance(guide, Flow) else None
        if not with_model:
            return load(self.path, flow=flow)
        spec = self.spec
        return load(self.path, model=spec.model, args=spec.args, kwargs=spec.kwargs, flow=flow)


@dataclass(frozen=True)
class PredictiveDensity:
    """Expected log predictive density by held-out data, in nats.

    Attributes:
        elpd: Sum over the rows of the data.
        se: Its standard error over the rows.
        draws_se: Its standard error over the draws of the fits.
        pointwise: The terms ``(rows,)``, in the order of the data.
        joint: Sum over the parts of the log density of all rows of a part together.
    """

    elpd: float
    se: float
    draws_se: float
    pointwise: Tensor
    joint: float

    def minus(self, other: PredictiveDensity) -> tuple[float, float]:
        """Return the difference of two on the same rows, and its standard error, row by row."""
        if self.pointwise.shape != other.pointwise.shape:
            raise OptionError(
                f"Both need the same rows; there are {len(self.pointwise)} and "
                f"{len(other.pointwise)}."
            )
        difference = self.pointwise - other.pointwise
        return float(difference.sum()), _se(difference)

    def __str__(self) -> str:
        return f"elpd {self.elpd:.2f} ± {self.se:.2f} nats over {len(self.pointwise)} rows"


@dataclass(frozen=True, eq=False, repr=False)
class FitTable(Sequence[FitRow]):
    """Result of :func:`pyro_nfvi.map_fits`: a row for each specification, in their order.

    Attributes:
        rows: The rows.
        interrupted: Whether Ctrl-C came.
        seconds: Time of the call.
        num_workers: Processes that ran the fits; 0 where an executor had them.
        note: Why the fits ran in one process, if they did against the request.
    """

    rows: tuple[FitRow, ...]
    interrupted: bool = False
    seconds: float = 0.0
    num_workers: int = 1
    note: str = ""

    @overload
    def __getitem__(self, index: int) -> FitRow: ...
    @overload
    def __getitem__(self, index: slice) -> FitTable: ...
    def __getitem__(self, index: int | slice) -> FitRow | FitTable:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FitRow]:
        return iter(self.rows)

    @property
    def failed(self) -> tuple[FitRow, ...]:
        """Rows that are not done; their ``.error`` says why."""
        return tuple(row for row in self.rows if row.error)

    def select(self, **labels: Any) -> FitTable:
        """Return the rows that have these labels.

        Raises:
            OptionError: No row has them.
        """
        rows = tuple(
            row
            for row in self.rows
            if all(
                name in row.spec.labels and row.spec.labels[name] == value
                for name, value in labels.items()
            )
        )
        if not rows:
            known = {name: value for row in self.rows for name, value in row.spec.labels.items()}
            raise OptionError(f"No row has the labels {labels}; there are {list(known)}.")
        return replace(self, rows=rows)

    def rhat(self) -> TensorDict:
        """Return R-hat between fits of different seeds, by site: 1 where they agree.

        The draws of each fit are a chain. Fits of one posterior that do not agree are not all
        right, while fits that agree may share a fault (a guide that cannot follow the posterior).

        Returns:
            Rank-normalised split R-hat of every number, with the shape of its site; of a fit of
            the rows of plates, of its globals.

        Raises:
            OptionError: The rows differ by more than their seed.
            ModelError: Fewer than two of them are done.

        Cost:
            Reads every fit; two sorts of all draws.

        Source: Vehtari et al. 2021, Bayesian Analysis 16(2).
        """
        self._alike((_SEED,), "rhat")
        done = [row for row in self.rows if not row.error]
        if len(done) < 2:
            raise ModelError(f"R-hat needs two fits or more; {len(done)} are done.")
        sites = [_latents(row) for row in done]
        found = {}
        for name, value in sites[0].items():
            chains = torch.stack([one[name].detach().cpu().double() for one in sites])
            found[name] = rank_rhat(chains.reshape(*chains.shape[:2], -1)).reshape(value.shape[1:])
        return found

    def elpd(self) -> PredictiveDensity:
        """Return the expected log predictive density from the rows that were held out.

        Raises:
            OptionError: The rows differ by more than the part that was held out, or hold out none.
            ModelError: A part failed, so that the sum is not that of all rows; or the model's
                densities do not split into rows (``row.joint_lpd`` is there then).

        Source: Vehtari, Gelman & Gabry 2017, Statistics and Computing 27(5), sections 2.1 and 2.4
        (arXiv:1507.04544).
        """
        self._alike(_PARTS, "elpd")
        for row in self.rows:
            if row.error:
                raise ModelError(
                    f"{len(self.failed)} of {len(self.rows)} parts are not done, and the sum over "
                    f"the others is not that of all rows. The first: {row.error}"
                )
            if row.spec.held_out is None or row.lpd is None or row.lpd_error is None:
                raise OptionError("These fits hold out no rows: make them by spec.k_fold(5).")
            if bool(row.lpd.isnan().any()):
                raise ModelError(
                    "The log density of the data does not split into rows, or is NaN at one. The "
                    "densities of whole parts are row.joint_lpd."
                )
        helds = [row.spec.held_out for row in self.rows if row.spec.held_out is not None]
        index = torch.cat([held.index for held in helds])
        order = index.argsort()
        pointwise = torch.cat([row.lpd for row in self.rows if row.lpd is not None])[order]
        errors = torch.cat([row.lpd_error for row in self.rows if row.lpd_error is not None])
        return PredictiveDensity(
            float(pointwise.sum()),
            _se(pointwise),
            float(errors.square().sum().sqrt()),
            pointwise,
            sum(row.joint_lpd for row in self.rows),
        )

    def summary(self) -> str:
        """Return the table in words: a line for each fit, then what groups of them say."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.spec.labels))
        lines = [
            [str(row.spec.labels.get(name, "")) for name in names] + _cells(row)
            for row in self.rows
        ]
        heads = [*names, "elbo", "k-hat", "steps", "seconds", "verdict"]
        widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths)) + f"  {line[-1]}"
            for line in [heads, *lines]
        ]
        return "\n".join([*table, *self._notes()])

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        done = len(self.rows) - len(self.failed)
        text = f"{done} of {len(self.rows)} fits done"
        return f"FitTable({text}{', interrupted' if self.interrupted else ''})"

    # -------------------------------------------------------------------------- in words

    def _notes(self) -> list[str]:
        notes = [repr(self)[len("FitTable(") : -1] + f", in {self.seconds:.1f} s"]
        if self.note:
            notes.append(self.note)
        for together, told in ((_PARTS, _told_elpd), ((_SEED,), _told_rhat)):
            for labels, table in self._groups(together).items():
                words = told(table)
                if words:
                    each = ", ".join(f"{name} {value}" for name, value in labels)
                    notes.append(f"{each}: {words}" if each else words)
        return notes

    def _groups(self, together: tuple[str, ...]) -> dict[tuple[tuple[str, Any], ...], FitTable]:
        """Rows that have one of the labels, by their other labels."""
        found: dict[tuple[tuple[str, Any], ...], list[FitRow]] = {}
        for row in self.rows:
            labels = row.spec.labels
            if any(name in labels for name in together):
                rest = tuple((n, value) for n, value in labels.items() if n not in together)
                found.setdefault(rest, []).append(row)
        return {rest: replace(self, rows=tuple(rows)) for rest, rows in found.items()}

    def _alike(self, together: tuple[str, ...], name: str) -> None:
        """Refuse rows that differ by other labels, or have another model or other options."""
        rest = [
            {n: value for n, value in row.spec.labels.items() if n not in together}
            for row in self.rows
        ]
        odd = next((one for one in rest if one != rest[0]), None)
        if odd is not None:
            raise OptionError(
                f"{name} is of rows that differ by {' or '.join(together)} alone; these have the "
                f"labels {rest[0]} and {odd}. Choose some: table.select(...).{name}()."
            )
        if len({id(row.spec.model) for row in self.rows}) > 1:
            raise OptionError(
                f"{name} is of fits of one model; these have several. Choose some by their labels: "
                f"table.select(...).{name}()."
            )


def _latents(row: FitRow) -> TensorDict:
    """Draw the latents of a fit; of globals and rows the globals."""
    try:
        fit = row.load(with_model=False)
    except FileError:  # a fit of rows
        fit = row.load()
    if isinstance(fit, PlateFit):
        found = posterior_draws(fit, fit.globals)
        return {name: found[name] for name in fit.globals}
    return posterior_draws(fit, fit.latent.sites)


def _told_elpd(table: FitTable) -> str:
    try:
        return str(table.elpd())
    except (ModelError, OptionError):
        return ""


def _told_rhat(table: FitTable) -> str:
    try:
        found = table.rhat()
    except (ModelError, OptionError):
        return ""
    name = max(found, key=lambda name: float(found[name].nan_to_num(0.0).max()))
    return f"R-hat between {len(table)} seeds up to {float(found[name].max()):.3f} ({name})"


def _cells(row: FitRow) -> list[str]:
    if row.error:
        return ["", "", "", "", f"failed: {row.error}"]
    one = row.record
    return [
        f"{one.elbo:.2f}", f"{one.khat:.2f}", str(one.steps), f"{one.seconds:.1f}", one.verdict
    ]  # fmt: skip


def _se(terms: Tensor) -> float:
    return math.sqrt(len(terms)) * float(terms.std()) if len(terms) > 1 else math.nan


def held_out_cells(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of a row that a score of held-out rows fills."""
    if not measured:
        return {}
    return {
        "lpd": measured["lpd"],
        "lpd_error": measured["error"],
        "joint_lpd": float(measured["joint"]),
    }
