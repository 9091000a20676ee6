"""``map_fits``: many fits side by side, on one machine or many."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from pyro_nfvi._map_fits.fit_table import FitRow, FitTable, held_out_cells
from pyro_nfvi._map_fits.held_out_score import score_held_out
from pyro_nfvi._map_fits.job import FitRecord, Job
from pyro_nfvi._map_fits.results_folder import ResultsFolder
from pyro_nfvi._map_fits.run_jobs import JobsDone, run_jobs
from pyro_nfvi._map_fits.spec import FitSpec
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._processes.loky_workers import cores
from pyro_nfvi._processes.tasks import Executor, check_executor, refuse_inside
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError


@knows_options
def map_fits(
    specs: Iterable[FitSpec],
    executor: Executor | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> FitTable:
    """Make many fits side by side: seeds, folds, sweeps, data sets.

    A fit that fails is a row with its reason, and the others go on. A task whose worker ends
    (killed, out of memory) is begun once more. Ctrl-C ends the call, and what is done is in the
    table. Results do not depend on where the fits run, as far as the machines round alike.

    Args:
        specs: What to fit, such as ``FitSpec(model, (x, y)).k_fold(5)``.
        executor: Where to run: any object with ``submit(function, *args)`` whose result has
            ``.result()``, such as a Dask ``Client``, a submitit executor, an ``MPIPoolExecutor``,
            or one of loky. Its workers need this package, and modules that the model is imported
            from; models of scripts and notebooks travel by themselves. None: processes of this
            machine, or this process where the model cannot be sent to others, which ``.note`` says.
        folder: Where results are kept, in files named after the content of their specification:
            the code of the model with what it refers to, data, options and seed. A result that is
            there is not computed again; failed fits are. None: until the table is gone.
        num_workers: Processes; as many as there are cores by default. With an executor, the most
            tasks that wait in it; all of them by default.
        progress: Show a bar.

    Returns:
        A row for each specification, in their order.

    Raises:
        OptionError: An argument that cannot be used, or with a folder a specification that cannot
            be told apart from others.
        FileError: The folder cannot be written to.
        ModelError: The call comes from a model that is being fitted by one of many fits.

    Cost:
        The fits, divided over the workers, and some seconds to start these. Each task carries its
        model and data.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> quick = {"guide": "affine", "max_steps": 50, "engine": "eager", "explore": "off"}
        >>> spec = nfvi.FitSpec(model, (torch.randn(8),), options=quick)
        >>> table = nfvi.map_fits(spec.seeds(2), num_workers=1, progress=False)
        >>> table, bool(table.rhat()["mu"] < 1.05)
        (FitTable(2 of 2 fits done), True)
        >>> len(nfvi.map_fits(spec.k_fold(2), num_workers=1, progress=False).elpd().pointwise)
        8
    """
    refuse_inside("map_fits")
    begin = time.monotonic()
    listed = _checked(specs)
    check_executor(executor)
    if num_workers is not None:
        num_workers = whole("num_workers", num_workers)
    elif executor is None:
        num_workers = cores()
    jobs = [Job(spec, _measure(spec)) for spec in listed]
    kept = None
    if folder is None:
        kept = _ForAWhile()
        folder = kept.path
    home = ResultsFolder.open(folder)
    done = run_jobs(
        jobs, executor, home, num_workers, keyed=kept is None, title="fits", progress=progress
    )
    rows = tuple(_row(done, home, number, spec, kept) for number, spec in enumerate(listed))
    seconds = time.monotonic() - begin
    return FitTable(rows, done.interrupted, seconds, done.num_workers, done.note)


class _ForAWhile:
    """A folder that goes with the last row that holds this object."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="nfvi-fits-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _measure(spec: FitSpec) -> Any:
    if spec.held_out is None:
        return None
    return partial(score_held_out, held=spec.held_out, seed=spec.seed)


def _checked(specs: Any) -> Sequence[FitSpec]:
    if isinstance(specs, FitSpec) or not isinstance(specs, Iterable):
        raise OptionError(
            f"specs is several FitSpec, as in [FitSpec(model, (y,))] or spec.seeds(4); got "
            f"{type(specs).__name__}."
        )
    listed = tuple(specs)
    for number, spec in enumerate(listed):
        if not isinstance(spec, FitSpec):
            raise OptionError(
                f"specs holds FitSpec alone; entry {number} is a {type(spec).__name__}."
            )
    if not listed:
        raise OptionError("specs is empty: give one FitSpec or more.")
    return listed


def _row(
    done: JobsDone, home: ResultsFolder, number: int, spec: FitSpec, kept: _ForAWhile | None
) -> FitRow:
    result = done.results.get(number)
    if result is None:
        return FitRow(spec, FitRecord(), error="not run: interrupted")
    path = home.fit_path(done.keys[number])
    return FitRow(
        spec,
        result.record,
        path if path.is_file() else None,
        result.error,
        done.attempts[number],
        **held_out_cells(result.measured),
        _folder=kept,
    )
