"""Simulation-based calibration of variational fits: many data sets of known parameters, fitted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch

from pyro_nfvi._map_fits.job import Job, JobResult
from pyro_nfvi._map_fits.results_folder import ResultsFolder
from pyro_nfvi._map_fits.run_jobs import run_jobs
from pyro_nfvi._map_fits.spec import FitSpec, check_options
from pyro_nfvi._processes.loky_workers import cores
from pyro_nfvi._processes.tasks import Executor, check_executor, refuse_inside
from pyro_nfvi._random import fold_in, fresh_seed, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.calibration._result import VSBC, SimulatedFit, stacked
from pyro_nfvi.calibration._simulation import Simulation, Simulator
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._nfvi import NFVI


class _Stream(IntEnum):
    """Streams of random numbers apart from the one that draws parameters and data."""

    FIT = 1
    PLACES = 2


def vsbc(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_simulations: int = 100,
    observed: str | Sequence[str] | Mapping[str, str] | None = None,
    sites: Sequence[str] | None = None,
    reweighted: bool = False,
    level: float = 0.01,
    executor: Executor | None = None,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> VSBC:
    r"""Variational simulation-based calibration: are fits of this model right on average?

    Parameters :math:`\theta_i` are drawn from the prior and data from the model; each data set is
    fitted, and :math:`p_i = \Pr_q(\theta < \theta_i)` taken for every number. Were every fit the
    posterior, p would be uniform. Two tests are made of it: symmetry about 1/2
    (``bias_test``, the test of VSBC) sees fits that are too low or too
    high on average; the distribution of \|2p - 1\| (``width_test``) sees
    those that are too narrow or too wide. It sees what no number of one fit can, modes that fits
    miss as well, but only on average over the prior: it does not say whether *the* fit to *your*
    data is right.

    Every observed site of the call is drawn anew and put back in its place, so a model that is
    ready for :class:`NFVI` needs no change; its data serve for their shape. A model may also draw
    its data itself where it gets None for them.

    Args:
        model: The Pyro model, with proper priors.
        args: Its positional arguments, as a tuple.
        kwargs: Its keyword arguments.
        num_simulations: Data sets to draw and to fit. 100 see a bias of 0.5 posterior sds, or a
            width wrong by a half, at the default level and ten numbers, nearly always.
        observed: Which sites are data: all observed ones (None), or names. With
            ``{site: argument}`` a draw is passed as that keyword argument too, which is None while
            drawing: for models that use data elsewhere than at ``obs=``, as lags or scales.
        sites: Which sites to judge: all continuous latent ones (None), or names, deterministic
            sites among them.
        reweighted: Take p under smoothed importance weights: whether they repair the fits.
        level: Largest chance of a false alarm over all numbers and both tests (Bonferroni).
        executor: Where the fits run, as for :func:`pyro_nfvi.map_fits`; None is processes of this
            machine.
        folder: Where results are kept, as for :func:`pyro_nfvi.map_fits`: with a seed, a second
            call computes only what is missing, such as further simulations.
        num_workers: Processes; as many as there are cores by default. The model may stand anywhere:
            in a module, a script, a notebook or a function. Where it cannot be sent to other
            processes (it holds an open file or a lock), the fits run in this one, which ``.note``
            says.
        seed: Same seed, same result, however many workers there are; None draws one.
        progress: Show a bar.
        options: How to fit, as for :class:`NFVI`: ``guide``, ``max_steps``, ``max_seconds``, ...
            With ``max_seconds`` results depend on the machine's speed.

    Returns:
        Probabilities, tests and every fit; after Ctrl-C of the fits done until then. A fit that
        fails is counted and named, and leaves no p.

    Raises:
        ModelError: No data can be simulated from the model (improper prior, ``pyro.factor``, a
            site whose ``obs`` stays fixed, subsampling, trained parameters), a simulation is not
            finite, or every fit failed. Also where a model that is being calibrated calls this.
        OptionError: An option that cannot be used.
        FileError: The folder cannot be written to.

    Cost:
        ``num_simulations`` fits, divided over the workers, some seconds to start these.

    Source: Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 4; Talts et al. 2018,
    arXiv:1804.06788, for the uniformity of ranks. p-values of symmetry are exact here, and more
    careful than the paper's (see ``bias_test``).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = nfvi.vsbc(
        ...     model, (torch.zeros(5),), num_simulations=4, num_workers=1, seed=0,
        ...     progress=False, guide="affine", max_steps=50, engine="eager", explore="off",
        ... )
        >>> found.p["mu"].shape, found.failed  # a verdict takes 20 or more
        (torch.Size([4]), ())
    """
    refuse_inside("vsbc")
    begin = time.monotonic()
    _check(args, num_simulations, level, num_workers, seed)
    check_options(options)
    check_executor(executor)
    home = None if folder is None else ResultsFolder.open(folder)
    NFVI(model, **options)  # checks its own options before any work is done
    base = fresh_seed() if seed is None else seed
    simulator = Simulator(model, args, {} if kwargs is None else kwargs, observed)
    seeds = [fold_in(base, index) for index in range(num_simulations)]
    drawn = [simulator.draw(one) for one in seeds]
    names = _names(simulator, drawn[0], sites)
    _check_finite(drawn)
    tasks = [
        _Task(index, one, {name: simulation.truth[name] for name in names}, simulation.data)
        for index, (one, simulation) in enumerate(zip(seeds, drawn))
    ]
    if num_workers is None and executor is None:
        num_workers = cores()
    done = run_jobs(
        [_job(simulator, task, options, reweighted=reweighted) for task in tasks],
        executor,
        home,
        num_workers,
        keyed=home is not None,
        title="VSBC",
        progress=progress,
    )
    results, interrupted = done.results, done.interrupted
    fits = tuple(_simulated(tasks[index], results[index]) for index in sorted(results))
    if fits and all(fit.error for fit in fits) and not interrupted:
        raise ModelError(f"All {len(fits)} fits failed. The first: {fits[0].error}")
    good = [index for index in sorted(results) if not results[index].error]
    return VSBC(
        stacked([results[index].measured for index in good]),
        stacked([tasks[index].truth for index in good]),
        fits,
        num_simulations,
        level,
        reweighted,
        interrupted,
        done.num_workers,
        base,
        time.monotonic() - begin,
        done.note,
    )


@dataclass(frozen=True)
class _Task:
    """One data set with its truth."""

    index: int
    seed: int
    truth: TensorDict
    data: TensorDict


def _job(simulator: Simulator, task: _Task, options: Mapping[str, Any], *, reweighted: bool) -> Job:
    """Describe the fit to one data set, of which the probabilities come back."""
    spec = FitSpec(
        simulator.condition(task.data),
        simulator.args,
        simulator.kwargs,
        options,
        fold_in(task.seed, _Stream.FIT),
    )
    measure = partial(_probabilities, task=task, reweighted=reweighted)
    return Job(spec, measure, keep_fit=False)


def _simulated(task: _Task, result: JobResult) -> SimulatedFit:
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


def _probabilities(fit: Fit, task: _Task, *, reweighted: bool) -> TensorDict:
    """Pr(theta < truth) under the fit, between the ranks of its draws at random."""
    sites = fit._sites(fit.draws.z, fit.draws.deterministic)
    log_weights = torch.zeros(len(fit.draws.z), dtype=torch.float64)
    if reweighted:
        smoothed = fit.draws.smoothed()
        if smoothed is None:
            raise ModelError("no weight of the draws is finite, so they cannot be reweighted")
        log_weights = smoothed.log_weights.cpu().double()
    weights_of_draws = log_weights.softmax(0)
    places = stream(task.seed, _Stream.PLACES)
    found = {}
    for name, truth in task.truth.items():
        value = sites[name].detach().cpu().double()
        truth = truth.detach().cpu().double().reshape(value.shape[1:])
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"draws of {name!r} are not finite")
        count = len(value)
        weights = weights_of_draws.reshape(-1, *[1] * truth.ndim)
        less = (weights * (value < truth)).sum(0) * count
        same = (weights * (value == truth)).sum(0) * count
        # The rank of the truth among draws of its own distribution is uniform over count + 1
        # places; with a point drawn within the place, p is uniform and has no ties.
        place = torch.rand(truth.shape, generator=places, dtype=torch.float64)
        found[name] = ((less + place * (same + 1)) / (count + 1)).clamp(0, 1)
    return found


def _names(simulator: Simulator, drawn: Simulation, sites: Sequence[str] | None) -> tuple[str, ...]:
    if sites is None:
        return simulator.latents
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [name for name in names if name not in drawn.truth]
    if unknown or not names:
        raise OptionError(
            f"sites names {unknown or 'nothing'}; those that can be judged are {list(drawn.truth)}."
        )
    return names


def _check_finite(drawn: Sequence[Simulation]) -> None:
    """Refuse simulations with NaN or infinite values, before any fit.

    Leaving them out would be another prior than the model's.
    """
    for kind in ("truth", "data"):
        for name in getattr(drawn[0], kind):
            values = [getattr(simulation, kind)[name] for simulation in drawn]
            wrong = [i for i, value in enumerate(values) if not bool(torch.isfinite(value).all())]
            if wrong:
                raise ModelError(
                    f"{len(wrong)} of {len(drawn)} simulations gave values of {name!r} that are "
                    f"not finite (the first: number {wrong[0]}). The prior reaches parameters at "
                    "which the model overflows; make it tighter, or the model safe there."
                )


def _check(args: Any, num_simulations: Any, level: Any, num_workers: Any, seed: Any) -> None:
    if not isinstance(args, tuple):
        raise OptionError(
            f"args is a tuple of the model's arguments, as in (y,); got {type(args).__name__}."
        )
    for name, value in (("num_simulations", num_simulations), ("num_workers", num_workers)):
        if value is not None or name == "num_simulations":
            whole(name, value)
    if isinstance(level, bool) or not isinstance(level, float) or not 0 < level < 1:
        raise OptionError(f"level is a number between 0 and 1; got {level!r}.")
    seed_number(seed)
