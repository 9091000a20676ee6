"""Warm start: the model's parameters, the best Gaussian and the modes, before any flow trains."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pyro_nfvi._budget import Budget
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi.diagnostics._recipe import VERDICT
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import GAUSSIAN_START, PARAMETERS, TIME
from pyro_nfvi.infer._stages.gaussian_start import gaussian_stage, start_along
from pyro_nfvi.infer._stages.mode_search_stage import SearchedModes, find_modes
from pyro_nfvi.infer._stages.model_mode_search import best_of
from pyro_nfvi.infer._stages.parameter_start import ParamStart, start_params
from pyro_nfvi.infer._stages.prepared_engine import prepare_engine
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._weighted_draws import whole_density


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Result of the stages before training.

    Attributes:
        gaussian: The Gaussian at which the guide starts; None where it starts elsewhere.
        params: How the model's parameters started; None where they were left alone.
        search: Result of the mode search.
        notes: Lines for the report.
        interrupted: True if Ctrl-C ended the stage.
    """

    gaussian: GaussianFit | None = None
    params: ParamStart | None = None
    search: SearchedModes = field(default_factory=SearchedModes)
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def warm_start(
    problem: Problem, options: Options, time: TimePlan, guide: AutoFlow | PyroGuide
) -> WarmStart:
    """Move a guide that was just built to the best Gaussian, unless the options say otherwise.

    A guide of Pyro's and a baseline stay where they are; modes are searched for all the same.

    Args:
        problem: The posterior. Its parameters are moved to the highest evidence, as far as a
            Gaussian sees it.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide; its affine map is moved.
    """
    own = isinstance(guide, AutoFlow) and (guide._outer_kind == "flow" or guide._base is not None)
    if not options.precondition or own:
        return WarmStart(notes=problem.notes)
    if time.training.over():
        time.leave_out("a Gaussian to start from")
        return WarmStart(notes=problem.notes)
    init_loc, budget = problem.latent.init_loc, time.training.part(TIME.gaussian)
    watch = time.watch
    params: ParamStart | None = None
    notes = problem.notes
    try:
        with watch.part("parameters"):
            params, lines = _start_params(problem, options, budget)
        notes += lines
        if not options.automatic:
            prepare_engine(problem, options, time)
        with watch.part("gaussian"):
            found = gaussian_stage(
                problem.log_joint,
                init_loc,
                effort=options.effort,
                generator=problem.stream("gaussian"),
                budget=budget,
                progress=options.progress,
            )
    except KeyboardInterrupt:
        return WarmStart(params=params, notes=notes, interrupted=True)
    except WeightError as error:
        notes += (f"no Gaussian to start from, training starts at init_loc_fn: {error}",)
        return WarmStart(params=params, notes=notes)
    if budget.over():
        time.leave_out("the last steps to the Gaussian")
    if options.automatic and found.gap > VERDICT.gap:  # the Gaussian will not do
        prepare_engine(problem, options, time)
    with watch.part("modes"):
        search = find_modes(problem, options, time, found)
        better, modes = found, search.modes
        if modes is not None and time.affords(GAUSSIAN_START.compared_draws * (1 + len(modes))):
            noise = problem.stream("best mode")
            better = best_of(problem.log_joint, init_loc, found, modes, noise)
    notes += search.notes
    if isinstance(guide, PyroGuide) or options.baseline is not None:
        return WarmStart(None, params, search, notes, search.interrupted)
    if better is not found:
        notes += ("a mode of more mass than the first one was found",)
    found = better
    with watch.part("gaussian"):
        if found.arrow is not None and guide.takes_arrow:
            guide.start_at_arrow(found.loc, found.arrow)
        else:
            guide.start_at(found.loc, found.factor)
        noise = problem.stream("directions")
        notes += tuple(start_along(guide, problem.log_joint, found, noise, budget=time.training))
    notes = (_described(found), *notes)
    if found.condition > GAUSSIAN_START.condition and init_loc.dtype == torch.float32:
        notes += (
            "single precision may be too coarse for so large a condition number: unless the "
            "verdict is good, run the model in float64 (torch.set_default_dtype(torch.float64))",
        )
    return WarmStart(found, params, search, notes, search.interrupted)


def _described(found: GaussianFit) -> str:
    return (
        f"started at the best Gaussian of {len(found.starts)} starts: ELBO {found.bound:.2f} "
        f"± {found.bound_se:.2f} nats, condition number of its correlations "
        f"{found.condition:.3g}"
    )


def _start_params(
    problem: Problem, options: Options, budget: Budget
) -> tuple[ParamStart | None, tuple[str, ...]]:
    """Bring the model's parameters near the highest evidence, before anything rests on them."""
    if not problem.log_joint.named_parameters():
        return None, ()
    density = whole_density(problem.log_joint, PARAMETERS.start_draws)
    if density is None:
        return None, (
            "the model's parameters start where the model puts them: there is too much data to "
            "score all of it",
        )
    with options.progress.stage("starting the model's parameters", 1, unit="stage"):
        found = start_params(
            problem.log_joint,
            density,
            problem.latent.init_loc,
            generator=problem.stream("parameters"),
            budget=budget,
        )
    return found, (
        f"the model's parameters gained {found.gain:.3g} nats of evidence in {found.rounds} "
        f"rounds before training{'' if found.converged else ', and were not at rest'}",
    )
