"""Scoring: draws of a guide with both densities, wrapped up as a fit."""

from __future__ import annotations

import torch

from pyro_nfvi._train.density_selection import present
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._make_guide import flow_name
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import CALL_SIZES, SCORING
from pyro_nfvi.infer._settings import Settings
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import most_on_all_data, weigh


def score_guide(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow | AutoMixture | PyroGuide,
    training: Training,
) -> Fit:
    """Score draws of a guide by itself and by the model.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide.
        training: How it came about.
    """
    log_joint = problem.log_joint
    most = SCORING.loop_draws if log_joint.how == "loop" else SCORING.draws
    most = min(most, CALL_SIZES.evaluation // max(1, log_joint.size))
    count = max(SCORING.fewest_draws, most)
    density = guide.density()
    noise = problem.stream("judge") if density.takes_generator else None
    bar = options.progress.stage("scoring draws", count, unit="draw")
    with time.watch.part("scoring"), torch.no_grad(), bar as tick:
        draws = weigh(density, log_joint, count, noise, budget=time.whole, tick=tick)
    whole = most_on_all_data(log_joint)
    if len(draws.z) < min(count, whole):
        time.leave_out("some of the draws on which a fit is judged")
    if not draws.exact and len(draws.z) <= whole:
        time.leave_out("a look at all data")
    params = ModelParams.of(log_joint.param_leaves(), log_joint.param_constraints)
    return Fit(guide, draws, training, params.constrained(), log_joint, params)


def settings_of(
    problem: Problem, options: Options, guide: AutoFlow | AutoMixture | PyroGuide
) -> Settings:
    """Return the options of a fit, for its report and file."""
    density = present(problem.density, problem.log_joint)
    return Settings(
        flow=flow_name(guide),
        objective=options.objective.name,
        num_particles=options.num_particles,
        max_steps=options.max_steps,
        seed=problem.seed,
        particles_by=problem.log_joint.how,
        particles_why=problem.log_joint.why,
        density_by=density.backend,
        density_why=density.reason,
    )
