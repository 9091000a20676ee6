"""Model selection: a Gaussian, flows inside it, or a mixture of these on several modes."""

from __future__ import annotations

from dataclasses import replace

from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._checks.reaching_draws import MOMENT_ROWS
from pyro_nfvi.infer._checks.tails import TAIL_ROWS, follow_tails, short_tails
from pyro_nfvi.infer._findings import HeavyTails
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import MOMENTS, TIME
from pyro_nfvi.infer._stages.candidate_flows import candidate_flows
from pyro_nfvi.infer._stages.conditional_start import NAME as CONDITIONAL_NAME
from pyro_nfvi.infer._stages.conditional_start import conditional_fit
from pyro_nfvi.infer._stages.continued_training import continue_training
from pyro_nfvi.infer._stages.examination import (
    compared_moments,
    draws_that_reach,
    leaves_mass_out,
)
from pyro_nfvi.infer._stages.flow_growth import (
    Candidate,
    bound_gain,
    candidate,
    gaussian_fit,
    good_enough,
    grow_flow,
    reported,
)
from pyro_nfvi.infer._stages.mode_product import product_fit
from pyro_nfvi.infer._stages.mode_search_stage import SearchedModes
from pyro_nfvi.infer._stages.multimodal import fit_modes
from pyro_nfvi.infer._stages.training import TrainingPlan
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan


def select_model(
    problem: Problem, options: Options, time: TimePlan, guide: AutoFlow, start: WarmStart
) -> Fit:
    """Fit a Gaussian; put a flow inside it, more layers in front; train on with more particles.

    Where the mode search found several modes, that is done for each of them, and the result is
    their mixture (:func:`fit_modes`), unless its bound is lower. Where it found the modes of
    independent blocks, the product of their mixtures takes the place of the Gaussian.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The Gaussian, where it starts.
        start: Result of the stages before.
    """
    best: Fit | None = None
    tried: tuple[Candidate, ...] = ()
    # With parameters of the model that are not at rest the Gaussian cannot stand for a fit.
    at_rest = not problem.log_joint.parameters() or (
        start.params is not None and start.params.converged
    )
    if start.gaussian is not None and at_rest:
        best = gaussian_fit(problem, options, time, guide, start.gaussian, start)
        tried = (candidate("", best, time.whole.spent(), kept=True),)
        relative = None
        if not good_enough(best) and not start.interrupted:
            relative = conditional_fit(problem, options, time, start, whole=True)
        if relative is not None:
            kept = (
                bound_gain(relative, best, options.objective) > 0
                and good_enough(relative)
                and not _too_narrow(problem, time, start.search, None, relative)
            )
            tried += (candidate(CONDITIONAL_NAME, relative, time.whole.spent(), kept=kept),)
            best = relative if kept else best
        if best is relative:
            pass  # of what a search took for several modes, such as the neck of a funnel, too
        elif start.search.modes is not None and len(start.search.modes) > 1:
            mixture, components = fit_modes(
                problem, options, time, best, start, start.search.modes, tried
            )
            if mixture is not None:
                return mixture
            tried = components
        elif start.search.product is not None:
            made = product_fit(problem, options, time, start, start.search.product)
            kept = bound_gain(made, best, options.objective) > 0
            tried += (candidate("product of mixtures", made, time.whole.spent(), kept=kept),)
            if kept:
                best = made

    # Beyond the 95 % quantile a power law is out of a Gaussian's reach, and costs it few nats.
    tails: HeavyTails | None = None
    look = time.affords(TAIL_ROWS[problem.log_joint.how], of=time.training)
    if best is not None and look:
        budget = time.training.part(TIME.candidate_check)
        with time.watch.part("checks"):
            tails = follow_tails(best.latent, problem.log_joint, best.draws, budget)
    heavy = tails is not None and bool(tails.indices)

    def accepted(fit: Fit) -> bool:
        if heavy and not fit.training.settings.flow:
            return False
        with time.watch.part("checks"):
            return good_enough(fit) and not _too_narrow(problem, time, start.search, tails, fit)

    plan = TrainingPlan.after(start, options.max_steps)
    grown = grow_flow(problem, options, time, guide, best, plan, accepted=accepted, tail=heavy)
    left = options.max_steps + options.more_steps - sum(one.steps for one in grown.tried)
    last = replace(
        plan,
        max_steps=left,
        number=1 + len(candidate_flows(problem.latent.dim)),
        interrupted=plan.interrupted or grown.interrupted,
    )
    longer = continue_training(problem, options, time, grown.best, last, accepted=accepted)
    tried += grown.tried + longer.tried
    notes = (*start.notes, *grown.notes, *longer.notes)
    return reported(longer.best, tried, notes)


def _too_narrow(
    problem: Problem, time: TimePlan, search: SearchedModes, tails: HeavyTails | None, fit: Fit
) -> bool:
    """Tell whether checks see posterior mass beyond a candidate's own draws."""
    if leaves_mass_out(problem, time, search, fit):
        return True
    log_joint, how = problem.log_joint, problem.log_joint.how
    # Where there is no time to look, there is none to mend anything either.
    reaching = None
    if time.affords(MOMENT_ROWS[how], of=time.training):
        reaching = draws_that_reach(problem, fit, time.training.part(TIME.candidate_check))
    if compared_moments(fit, tails, reaching, MOMENTS.mended).names:
        return True
    if not time.affords(TAIL_ROWS[how], of=time.training):
        return False
    without = () if tails is None else tails.without_variance
    budget = time.training.part(TIME.candidate_check)
    return bool(short_tails(fit.latent, log_joint, fit.draws, without, budget, reaching).names)
