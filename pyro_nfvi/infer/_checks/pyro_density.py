"""Pyro's own scores beside the log joint's: points before training, draws after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.second_opinion import second_opinion
from pyro_nfvi._random import stream
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._findings import SecondOpinion

if TYPE_CHECKING:
    from pyro_nfvi.infer._fit import Fit


#: Points near the start, and as many around the origin, before training; draws after it. A share p
#: of wrong draws is missed by n draws with probability (1 - p)^n: 10 % by 32 once in thirty.
_POINTS, _DRAWS = 8, 32
#: Half the width of the points around the origin, as for starts.
_RADIUS = 2.0
#: Seconds after which no further point or draw is begun; for most models all takes a tenth of it.
_SECONDS = 2.0
#: Share of a limited time that a check may take.
_SHARE = 0.03


def check_by_pyro(log_joint: LogJoint, budget: Budget = UNLIMITED) -> SecondOpinion:
    """Refuse a model that Pyro scores otherwise at points around the start.

    A point at which an argument of a distribution is not allowed is one point that failed, and no
    reason to stop unless all do; one outside of a support that was declared too wide is.

    Returns:
        How many points were compared; where that is none, the model was not looked at.

    Raises:
        ModelError: Names the site.
    """
    near = log_joint.points(_POINTS)
    # Around the origin of the unconstrained space as well, where supports have their middle.
    wide = torch.rand(near.shape, generator=stream(0, "second opinion")).to(near)
    points = torch.cat([near, _RADIUS * (2 * wide - 1)])
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


def opinion_of_pyro(fit: Fit, budget: Budget = UNLIMITED) -> SecondOpinion:
    """Let Pyro score some of a fit's draws, and tell what it says of them."""
    opinion = second_opinion(fit.require_model(), fit.draws.z[:_DRAWS], budget=_short(budget))
    found = opinion.objections
    site, reason = (found[0].site, found[0].reason) if found else ("", "")
    return SecondOpinion(opinion.draws, len(found), site, reason, opinion.left_out)


def _short(budget: Budget) -> Budget:
    """The time of one check: two seconds, or a small share of a limited time."""
    return budget.at_most(
        _SECONDS if budget.limit is None else min(_SECONDS, _SHARE * budget.limit)
    )
