"""Fits to simulated data sets, and where the truth of each lies among its draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch

from pyro_nfvi._map_fits.job import Job, JobResult
from pyro_nfvi._map_fits.results_folder import ResultsFolder
from pyro_nfvi._map_fits.run_jobs import run_jobs
from pyro_nfvi._map_fits.spec import FitSpec
from pyro_nfvi._processes.loky_workers import cores
from pyro_nfvi._processes.tasks import Executor
from pyro_nfvi._random import fold_in, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.calibration._recalibration import log_weights_of, scores_of, support_of_site
from pyro_nfvi.calibration._result import SimulatedFit, stacked
from pyro_nfvi.calibration._simulation import Simulation
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._fit import Fit


class _Stream(IntEnum):
    """Streams of random numbers apart from the one that draws parameters and data."""

    FIT = 1
    PLACES = 2


@dataclass(frozen=True)
class Task:
    """One data set with its truth.

    Attributes:
        index: Number of the simulation.
        seed: Its seed.
        truth: The parameters that are judged.
        model: The model on these data.
    """

    index: int
    seed: int
    truth: TensorDict
    model: Callable[..., Any]


def tasks_of(
    drawn: Sequence[Simulation],
    seeds: Sequence[int],
    names: Sequence[str],
    on: Callable[[TensorDict], Callable[..., Any]],
) -> list[Task]:
    """Return a task for each data set.

    Args:
        drawn: The data sets, with their truth.
        seeds: Their seeds.
        names: Sites that are judged.
        on: Returns the model on a data set.
    """
    return [
        Task(index, seed, {name: one.truth[name] for name in names}, on(one.data))
        for index, (seed, one) in enumerate(zip(seeds, drawn, strict=True))
    ]


@dataclass(frozen=True)
class Measured:
    """Places of the truths in all fits; those that failed have no row in the tensors.

    Attributes:
        p: ``Pr_q(theta < truth)`` by site.
        scores: Distances of the truth from the fit's median, in its half widths, by site.
        truth: The truth by site.
        fits: Every fit that was tried.
        interrupted: Whether Ctrl-C came.
        num_workers: Processes that ran the fits.
        note: Why they ran in one process, if they did against the request.
    """

    p: TensorDict
    scores: TensorDict
    truth: TensorDict
    fits: tuple[SimulatedFit, ...]
    interrupted: bool
    num_workers: int
    note: str


def fit_all(
    tasks: Sequence[Task],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    reweighted: bool,
    executor: Executor | None,
    home: ResultsFolder | None,
    num_workers: int | None,
    title: str,
    progress: bool,
) -> Measured:
    """Fit every data set, and say where its truth lies among the draws.

    Args:
        tasks: The data sets.
        args: Positional arguments of their models.
        kwargs: Keyword arguments of these.
        options: How to fit, as for :class:`NFVI`.
        reweighted: Weigh draws by their smoothed importance weights.
        executor: Where the fits run; None is processes of this machine.
        home: Folder of results; None for none.
        num_workers: Processes; None for as many as there are cores.
        title: Title of the bar.
        progress: Show it.

    Raises:
        ModelError: Every fit failed.
    """
    if num_workers is None and executor is None:
        num_workers = cores()
    done = run_jobs(
        [_job(task, args, kwargs, options, reweighted=reweighted) for task in tasks],
        executor,
        home,
        num_workers,
        keyed=home is not None,
        title=title,
        progress=progress,
    )
    results = done.results
    fits = tuple(_simulated(tasks[index], results[index]) for index in sorted(results))
    if fits and all(fit.error for fit in fits) and not done.interrupted:
        raise ModelError(f"All {len(fits)} fits failed. The first: {fits[0].error}")
    good = [index for index in sorted(results) if not results[index].error]
    measured = [results[index].measured for index in good]
    return Measured(
        stacked([_part(one, _P) for one in measured]),
        stacked([_part(one, _SCORE) for one in measured]),
        stacked([tasks[index].truth for index in good]),
        fits,
        done.interrupted,
        done.num_workers,
        done.note,
    )


def chosen_sites(
    latents: tuple[str, ...], drawn: Simulation, sites: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the sites to judge.

    Args:
        latents: Continuous latent sites.
        drawn: One simulation.
        sites: Names that were asked for; None for all latents.

    Raises:
        OptionError: A name is not that of a latent or deterministic site.
    """
    if sites is None:
        return latents
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [name for name in names if name not in drawn.truth]
    if unknown or not names:
        raise OptionError(
            f"sites names {unknown or 'nothing'}; those that can be judged are {list(drawn.truth)}."
        )
    return names


def check_finite(drawn: Sequence[Simulation], source: str) -> None:
    """Refuse simulations with NaN or infinite values, before any fit.

    Leaving them out would be another law than the model's.

    Args:
        drawn: The simulations.
        source: What parameters are drawn from, with advice, as the end of a message.

    Raises:
        ModelError: A value is not finite.
    """
    for kind in ("truth", "data"):
        for name in getattr(drawn[0], kind):
            values = [getattr(simulation, kind)[name] for simulation in drawn]
            wrong = [i for i, value in enumerate(values) if not bool(torch.isfinite(value).all())]
            if wrong:
                raise ModelError(
                    f"{len(wrong)} of {len(drawn)} simulations gave values of {name!r} that are "
                    f"not finite (the first: number {wrong[0]}). {source}"
                )


def check_numbers(num_simulations: Any, level: Any, num_workers: Any, seed: Any) -> None:
    """Refuse numbers that cannot be used.

    Raises:
        OptionError: One of them.
    """
    for name, value in (("num_simulations", num_simulations), ("num_workers", num_workers)):
        if value is not None or name == "num_simulations":
            whole(name, value)
    if isinstance(level, bool) or not isinstance(level, float) or not 0 < level < 1:
        raise OptionError(f"level is a number between 0 and 1; got {level!r}.")
    seed_number(seed)


def _job(
    task: Task,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    reweighted: bool,
) -> Job:
    """Describe the fit to one data set, of which places of the truth come back."""
    spec = FitSpec(task.model, args, kwargs, options, fold_in(task.seed, _Stream.FIT))
    measure = partial(_places, truth=task.truth, seed=task.seed, reweighted=reweighted)
    return Job(spec, measure, keep_fit=False)


def _simulated(task: Task, result: JobResult) -> SimulatedFit:
    record = result.record
    if result.error:
        return SimulatedFit(
            task.index, task.seed, error=result.error, seconds=record.seconds,
            warnings=record.warnings,
        )  # fmt: skip
    return SimulatedFit(
        task.index,
        task.seed,
        record.verdict,
        record.khat,
        record.elbo,
        record.steps,
        record.why_stopped,
        record.seconds,
        warnings=record.warnings,
    )


#: Prefixes of the two kinds of tensors that a fit is measured by.
_P, _SCORE = "p of ", "score of "


def _part(measured: TensorDict, prefix: str) -> TensorDict:
    return {
        name.removeprefix(prefix): value
        for name, value in measured.items()
        if name.startswith(prefix)
    }


def _places(fit: Fit, truth: TensorDict, seed: int, *, reweighted: bool) -> TensorDict:
    """Pr(theta < truth) under the fit, between the ranks of its draws at random, and the scores."""
    sites = fit._sites(fit.draws.z, fit.draws.deterministic)
    log_weights = log_weights_of(fit, reweighted=reweighted)
    weights_of_draws = log_weights.softmax(0)
    places = stream(seed, _Stream.PLACES)
    found = {}
    for name, true in truth.items():
        value = sites[name].detach().cpu().double()
        true = true.detach().cpu().double().reshape(value.shape[1:])
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"draws of {name!r} are not finite")
        count = len(value)
        weights = weights_of_draws.reshape(-1, *[1] * true.ndim)
        less = (weights * (value < true)).sum(0) * count
        same = (weights * (value == true)).sum(0) * count
        # The rank of the truth among draws of its own distribution is uniform over count + 1
        # places; with a point drawn within the place, p is uniform and has no ties.
        place = torch.rand(true.shape, generator=places, dtype=torch.float64)
        found[_P + name] = ((less + place * (same + 1)) / (count + 1)).clamp(0, 1)
        found[_SCORE + name] = scores_of(true, value, log_weights, support_of_site(fit, name))
    return found
