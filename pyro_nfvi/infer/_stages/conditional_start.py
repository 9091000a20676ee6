"""The fit of a Gaussian in coordinates relative to others: funnels and bent ridges, undone."""

from __future__ import annotations

import torch

from pyro_nfvi._gaussian_vi.conditional_coordinates import (
    ConditionalGaussian,
    fit_conditional_gaussian,
)
from pyro_nfvi._gaussian_vi.recipe import CONDITIONAL
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import TIME
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training

#: Name of the candidate.
NAME = "Gaussian in conditional coordinates"


def conditional_fit(
    problem: Problem, options: Options, time: TimePlan, start: WarmStart, *, whole: bool
) -> Fit | None:
    """Score a Gaussian of latents relative to others; None where no latent follows others so.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        start: Result of the stages before.
        whole: None too unless the latents that follow no others look Gaussian, so that the fit may
            be exact.
    """
    log_joint, found = problem.log_joint, start.gaussian
    if found is None or found.arrow is not None or log_joint.how == "loop" or log_joint.in_parts:
        return None
    if not 1 < problem.latent.dim <= CONDITIONAL.most_dim or time.training.over():
        return None
    with time.watch.part("gaussian"):
        budget = time.training.part(TIME.search)
        target = Target(log_joint, problem.latent.init_loc, budget=budget)
        noise = problem.stream("conditional coordinates")
        made = fit_conditional_gaussian(target, found, noise, effort=options.effort, whole=whole)
    if made is None:
        return None
    with time.watch.part("set_up"), problem.own_names():
        guide = problem.guide(None)
        guide.start_at_conditional(made.gaussian.loc, made.gaussian.factor, made.stages)
    training = Training(
        torch.zeros(0),
        StopReason("converged", "A Gaussian was fitted in coordinates relative to others."),
        "eager",
        "the Gaussian stage runs in PyTorch",
        settings_of(problem, options, guide),
        (*start.notes, _described(problem.latent, made)),
    )
    return score_guide(problem, options, time, guide, training)


def _described(latent: LatentSpace, made: ConditionalGaussian) -> str:
    followed = dict.fromkeys(place for stage in made.stages for place in stage.given.tolist())
    names = [latent.at(place) for place in followed]
    shown = ", ".join(names[: CONDITIONAL.named])
    more = "" if len(names) <= CONDITIONAL.named else f" and {len(names) - CONDITIONAL.named} more"
    return (
        f"{made.num_own} of {latent.dim} numbers are taken relative to others, which their means "
        f"and widths follow: {shown}{more}"
    )
