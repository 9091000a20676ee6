"""Pyro's own scores beside the log joint's: points before training, draws after it."""

from __future__ import annotations

import torch

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.second_opinion import second_opinion
from pyro_nfvi._random import stream
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._findings import SecondOpinion
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._recipe import GAUSSIAN_START, PYRO_CHECK


def check_by_pyro(log_joint: LogJoint, budget: Budget = UNLIMITED) -> SecondOpinion:
    """Refuse a model that Pyro scores otherwise at points around the start.

    A point at which an argument of a distribution is not allowed is one point that failed, and no
    reason to stop unless all do; one outside of a support that was declared too wide is.

    Returns:
        How many points were compared; where that is none, the model was not looked at.

    Raises:
        ModelError: Names the site.
    """
    near = log_joint.points(PYRO_CHECK.points)
    # Around the origin of the unconstrained space as well, where supports have their middle. At the
    # same points whatever the seed: a model is refused by what it is, and not by chance.
    wide = torch.rand(near.shape, generator=stream(0, "second opinion")).to(near)
    points = torch.cat([near, GAUSSIAN_START.radius * (2 * wide - 1)])
    opinion = second_opinion(log_joint, points, budget=_short(budget))
    grave = [one for one in opinion.objections if one.kind != "raised"]
    if len(opinion.objections) == opinion.draws:
        grave += opinion.objections
    if not grave:
        return SecondOpinion(opinion.draws, left_out=opinion.left_out)
    found = grave[0]
    if found.kind == "support":
        raise ModelError(
            f"The site {found.site!r} has values within its declared support that its distribution "
            f"does not allow: {found.reason}. The support is declared too wide, so that a guide "
            "would put draws where there is no posterior. Give the distribution its true support "
            "(for a TransformedDistribution, transforms whose codomain is the true one, or a class "
            "with its own `support`), or validate_args=False if its density is right there."
        )
    if found.kind == "differs":
        raise ModelError(
            f"Pyro's own trace scores the model otherwise than it is scored here: {found.reason} "
            f"(the largest term is the site {found.site!r}). That is no fault of the model that "
            "is known: please report it, with the model."
        )
    raise ModelError(
        f"The model cannot be run with Pyro's validation at any of {opinion.draws} points around "
        f"the start, at the site {found.site!r}: {found.reason}. Mend the arguments of the "
        "distribution, or give it validate_args=False if its density is right there."
    )


def opinion_of_pyro(fit: FittedPosterior, budget: Budget = UNLIMITED) -> SecondOpinion:
    """Let Pyro score some of a fit's draws, and return what it says of them."""
    opinion = second_opinion(
        fit.require_model(), fit.draws.z[: PYRO_CHECK.draws], budget=_short(budget)
    )
    found = opinion.objections
    site, reason = (found[0].site, found[0].reason) if found else ("", "")
    return SecondOpinion(opinion.draws, len(found), site, reason, opinion.left_out)


def _short(budget: Budget) -> Budget:
    """The time of one check: two seconds, or a small share of a limited time."""
    return budget.at_most(
        PYRO_CHECK.seconds
        if budget.limit is None
        else min(PYRO_CHECK.seconds, PYRO_CHECK.time_share * budget.limit)
    )
