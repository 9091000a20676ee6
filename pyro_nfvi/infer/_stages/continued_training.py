"""Continued training: more particles and steps for a flow that is not good enough yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pyro_nfvi.errors import DivergedError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import CONTINUED_TRAINING, FLOW_GROWTH
from pyro_nfvi.infer._stages.flow_growth import (
    ENDS,
    Growth,
    bound_gain,
    candidate,
    train_from,
    with_earlier_losses,
)
from pyro_nfvi.infer._stages.training import TrainingPlan
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.objectives._elbo import PathELBO
from pyro_nfvi.objectives._wide_noise import WideNoiseELBO


def continue_training(
    problem: Problem,
    options: Options,
    time: TimePlan,
    best: Fit,
    plan: TrainingPlan,
    *,
    accepted: Callable[[Fit], bool],
) -> Growth:
    """Train a flow again from where it is, with four times the particles, unless it is good enough.

    Half of the particles have wider noise where the objective is the ELBO: arms that the flow does
    not reach the end of cost the bound next to nothing.

    What comes of it is kept where its bound is no lower. Not done for a Gaussian, for more than 100
    latents, for mini-batches, and for a model that runs for one particle at a time.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        best: The fit so far.
        plan: Most steps, and the number of the training.
        accepted: Tells whether a fit is good enough.
    """
    formula, recipe = best.training.settings.flow, CONTINUED_TRAINING
    too_large = problem.log_joint.in_parts or best.latent.dim > recipe.most_dim
    over = plan.interrupted or best.why_stopped in ENDS
    if (
        not formula
        or too_large
        or over
        or plan.max_steps < FLOW_GROWTH.fewest_steps
        or accepted(best)
    ):
        return Growth(best)
    if time.training.over():
        time.leave_out("more steps with more particles")
        return Growth(best)
    begun = time.whole.spent()
    name = f"{formula} with {recipe.particle_factor} times the particles"
    plan = replace(plan, warm=True, particle_factor=recipe.particle_factor, notes=())
    training = options
    if isinstance(options.objective, PathELBO) and best.guide.density().base is None:
        training = replace(options, objective=WideNoiseELBO(recipe.excess))
        name += " and wide noise"
    try:
        fit = train_from(problem, training, time, best.guide, formula, plan)
    except KeyboardInterrupt:  # while the engine was built; training returns its fit
        return Growth(best, (), (f"interrupted before {name} was trained",), interrupted=True)
    except DivergedError as error:
        return Growth(best, (), (f"{name} diverged: {error}",))
    kept = bound_gain(fit, best, options.objective) > 0
    tried = (candidate(name, fit, time.whole.spent() - begun, kept=kept),)
    return Growth(with_earlier_losses(best, fit) if kept else best, tried)
