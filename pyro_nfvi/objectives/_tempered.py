"""The ELBO of a tempered target, cold only after a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from pyro_nfvi._typing import Noise
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._objective import Approximation, Estimate, LogDensity, Objective
from pyro_nfvi.objectives._schedules import Schedule, Tempered
from pyro_nfvi.objectives._surrogate import estimate_of, rows_that_count


@final
class TemperedELBO(Objective):
    r"""The ELBO of the tempered joint :math:`p(x, z)^{\beta_t}`, with its path gradient.

    .. math::
        \mathcal{F}_t = \mathbb{E}\bigl[\beta_t \log p(x, z) - \log q(z)\bigr], \qquad
        \beta_t = \min(1,\; 0.01 + t/10000)

    What is reported as the bound is the plain ELBO, at every step: losses stay comparable. From
    the step on at which :math:`\beta_t` is 1, this is :class:`PathELBO`; no fit counts as
    converged before.

    **When it helps.** Several modes that a path joins, in few dimensions: the hot target is wide,
    and modes are found before the flow has settled in one. **When it does not.** With one mode it
    only takes time, and at :math:`\beta = 0.01` the target is a hundred times as wide, so that a
    flow goes a long way out and has to come back. Modes far apart are lost in the cooling all the
    same, without a sign in k-hat: several starts are the better cure.

    **What it costs.** Nothing per step; the steps until :math:`\beta` is 1.

    Args:
        schedule: Weight of the joint as a function of the step; Rezende and Mohamed's by default,
            which takes 9,900 steps. It is an input of the engine, not a part of what is compiled.
            By name, ``objective="tempered"``, the same straight line takes 990 steps.

    Raises:
        OptionError: ``schedule`` is no schedule.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, equation 20.

    Example:
        >>> from pyro_nfvi.objectives import Tempered, TemperedELBO
        >>> objective = TemperedELBO(Tempered(steps=1000))
        >>> objective.settled, [objective.schedule(step) for step in (0, 1)]
        (990, [0.01, 0.011])
    """

    group = 1

    def __init__(self, schedule: Schedule | None = None) -> None:
        schedule = Tempered() if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            raise OptionError(
                f"TemperedELBO needs a schedule, such as Tempered(steps=1000); got {schedule!r}."
            )
        self.schedule = schedule
        self.name = f"tempered({schedule})"

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        z, log_q, score_q = density.push_with_score(eps)
        log_p, score_p, param_grads = self.score(log_density, z, params)
        beta = self.weight.to(z) if isinstance(self.weight, Tensor) else self.weight
        pull = score_q - beta * score_p
        log_w = log_p - log_q.detach()
        good = rows_that_count(log_w, pull)
        return estimate_of(z, pull, log_w, good, params, param_grads)
