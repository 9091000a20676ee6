"""The run of a fit: its stages, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._engine.native.background import background
from pyro_nfvi._error_text import describe_error, place_of
from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.initial_point_search import any_trace
from pyro_nfvi._pyro_model.latent_space import is_discrete, is_point_mass, no_latents
from pyro_nfvi._random import fresh_seed, seeded
from pyro_nfvi._train.engine_selection import check_engine
from pyro_nfvi._train.progress import SILENT
from pyro_nfvi.errors import DivergedError, ModelError, NFVIError, OptionError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._batches import by_batches, enumerated, is_loader_call
from pyro_nfvi.infer._distributed_fit import distributed_fit, explaining_lost_processes
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._make_guide import made_guide, make_guide, make_plate_guide
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._received_fit import received
from pyro_nfvi.infer._scopes import own_params, own_random_state
from pyro_nfvi.infer._stages.baseline import fit_baseline
from pyro_nfvi.infer._stages.examination import examine
from pyro_nfvi.infer._stages.model_selection import select_model
from pyro_nfvi.infer._stages.parameter_settling import settle_parameters
from pyro_nfvi.infer._stages.plate_stages import fit_plates, set_up_rows
from pyro_nfvi.infer._stages.plate_training import follow_rows
from pyro_nfvi.infer._stages.set_up import set_up
from pyro_nfvi.infer._stages.training import TrainingPlan, train
from pyro_nfvi.infer._stages.warm_start import WarmStart, warm_start
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training


def run_fit(
    model: Callable[..., Any],
    options: Options,
    time: TimePlan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Fit | PlateFit:
    """Fit a model, by this process or by all of torchrun.

    Args:
        model: The model.
        options: Options of the fit.
        time: Clock of the call.
        args: Positional arguments of the model, or a loader of batches.
        kwargs: Its keyword arguments.

    Raises:
        DivergedError: Gradients were not finite again and again; its ``fit`` is the best one.
    """
    try:
        with explaining_lost_processes():
            fit = _fitted(model, options, time, args, kwargs)
    except DivergedError as error:
        if isinstance(error.fit, (Fit, PlateFit)):
            error.fit = replace(error.fit, training=_timed(error.fit.training, time))
        raise
    if isinstance(fit, bytes):
        return received(fit, model, options.guide, args, kwargs)
    fit = replace(fit, training=_timed(fit.training, time))
    fit.guide.param_guard = fit._params.guard()
    return fit


def _fitted(
    model: Callable[..., Any],
    options: Options,
    time: TimePlan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Fit | PlateFit | bytes:
    """Set the fit up and run its stages; return the file of the fit where another did that."""
    watch, team = time.watch, distributed_fit()
    if team is not None:
        team.agree(options.seed, args, kwargs)
        if not team.leads:
            options = replace(options, progress=SILENT)
    seed = fresh_seed() if options.seed is None else options.seed
    with own_random_state(seed, "fit"), ExitStack() as stack:
        with watch.part("set_up"), nullcontext() if team is None else team.together():
            with _explained(), seeded(seed, "set-up"):
                if is_loader_call(args, kwargs):
                    model, args, kwargs = by_batches(model, args, kwargs)
                names = stack.enter_context(own_params(model, args, kwargs))
                trace = any_trace(model, args, kwargs)
                model = _enumerated(model, trace)
            check_engine(options.engine)
            options = replace(options, guide=made_guide(options.guide, model, args, kwargs))
            rows = make_plate_guide(options.guide, model, trace)
            call = (model, args, kwargs, names, seed)
            stages: Callable[[Problem], Fit | PlateFit]
            follow: Callable[[Any], object] | None = None
            if rows is not None:
                fresh = not rows.guide.is_set_up
                problem = set_up_rows(*call, rows.guide, options, time)
                if team is not None:
                    follow = follow_rows(problem, options, rows.guide, team.exchange)
                stages = partial(
                    fit_plates, options=options, time=time, guide=rows.guide, fresh=fresh,
                    reason=rows.reason,
                )  # fmt: skip
            else:
                asked = None if options.automatic else options.guide
                guide = make_guide(asked, model, options.outer)
                if team is not None and isinstance(guide, PyroGuide):
                    raise OptionError(
                        f"The processes of torchrun exchange a fit as its file, and none describes "
                        f"{guide.name}. Fit it in one process, or take an AutoFlow."
                    )
                fresh = not guide.is_set_up
                problem = set_up(*call, guide, options, time)
                stages = partial(_fit_whole, options=options, time=time, guide=guide, fresh=fresh)
        if team is None:
            return stages(problem)
        if isinstance(model, BatchModel):
            team.agree_on_rows(model)
        return team.fit(problem, stages, follow)


def _fit_whole(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow | PyroGuide,
    *,
    fresh: bool,
) -> Fit:
    """Run the stages of a fit of all latents as one vector, one after the other.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide, set up.
        fresh: True where it was not trained before.
    """
    with background():
        start = WarmStart(notes=problem.notes)
        if fresh:
            start = warm_start(problem, options, time, guide)
        if options.automatic and isinstance(guide, AutoFlow):
            fit = select_model(problem, options, time, guide, start)
        elif options.baseline is not None and isinstance(guide, AutoFlow):
            fit = fit_baseline(problem, options, time, guide, start)
        else:
            plan = TrainingPlan.after(start, options.max_steps)
            fit = train(problem, options, time, guide, plan)
        with time.watch.part("parameters"):
            fit = settle_parameters(problem, options, time, fit)
        with time.watch.part("checks"):
            return examine(problem, options, time, start.search, fit)


def _timed(training: Training, time: TimePlan) -> Training:
    """Write into the record of a fit where the time of the call went."""
    return replace(training, timing=time.watch.read())


def _cure(words: str) -> str:
    """Say what to look at after an error of the model."""
    if "dtype" in words or "scalar type" in words:
        return (
            "Data made of NumPy arrays are float64: give them as x.float(), or call "
            "torch.set_default_dtype(torch.float64) before the model makes its numbers."
        )
    return "Pass the model's own arguments, as in model(*args, **kwargs), data as tensors."


@contextmanager
def _explained() -> Iterator[None]:
    """Say of an error in the first run of the model that it is one."""
    try:
        yield
    except NFVIError as error:
        if error.__cause__ is None:
            raise
        # The same exception at each of the points that were tried.
        cure = _cure(str(error.__cause__))
        raise ModelError(
            f"{error} If the arguments of run() are at fault: {cure}"
        ) from error.__cause__
    except Exception as error:
        words = str(error).partition("Trace Shapes:")[0].rstrip()  # which Pyro appends
        cure = _cure(words)
        what = describe_error(error)
        if words.strip():
            what = f"{type(error).__name__}{place_of(error)}: {words}".rstrip(".")
        raise ModelError(
            f"The model could not be run: {what}. Mend what it says. If the arguments of run() are "
            f"at fault: {cure}"
        ) from error


def _enumerated(model: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """Mark the model's discrete sites for enumeration, where the user has not."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    sites = [site for site in sites if not site_is_subsample(site)]
    sites = [site for site in sites if not is_point_mass(site)]
    if all(site["is_observed"] or is_discrete(site["fn"]) for site in sites):
        raise ModelError(no_latents(trace))
    unmarked = any(
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and "enumerate" not in site["infer"]
        for site in trace.nodes.values()
    )
    return enumerated(model) if unmarked else model
