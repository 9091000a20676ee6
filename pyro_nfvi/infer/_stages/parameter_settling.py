"""Parameter settling: the model's parameters to the highest evidence, after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.infer._findings import ParamsLeft
from pyro_nfvi.infer._fit import Fit, add_finding
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import CALL_SIZES, GAPS, PARAMETERS, SCORING, TIME
from pyro_nfvi.infer._stages.parameter_ascent import Evidence, nats_left, raise_evidence
from pyro_nfvi.infer._stages.scoring import score_guide
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._weighted_draws import whole_density


def settle_parameters(problem: Problem, options: Options, time: TimePlan, fit: Fit) -> Fit:
    """Move the model's parameters to the highest evidence that the fit's draws see.

    Not where the weights reach no further, or nothing is gained. The finding says how much is
    left.

    Args:
        problem: The posterior; its parameters are moved in place.
        options: Options of the fit.
        time: Clock of the call.
        fit: The trained fit.
    """
    log_joint = problem.log_joint
    leaves = log_joint.named_parameters()
    if not leaves:
        return fit
    named, count = tuple(leaves), _num_draws(log_joint)
    rows = PARAMETERS.runs_per_draw * count
    density = whole_density(log_joint, count) if fit.draws.exact else None
    if density is None or not time.affords(rows, "the look at the model's parameters"):
        return add_finding(fit, ParamsLeft(None, names=named, looked=False))
    generator = problem.stream("parameters", "settling")
    left = _nats_left(problem, options, time, fit, density, generator)
    for _ in range(PARAMETERS.settling_moves if options.precondition else 0):
        if left is None or left[0] < GAPS.negligible or not time.affords(rows):
            break
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        z, log_q = fit.draws.z[:count], fit.draws.log_q[:count]
        evidence = Evidence(density, z, log_q, list(leaves.values()))
        raise_evidence(evidence, generator, budget=time.whole.part(TIME.check))
        moved = score_guide(problem, options, time, fit.guide, fit.training)
        gained = moved.log_evidence()[0] - fit.log_evidence()[0] if moved.draws.exact else 0.0
        if not gained > 0:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(before[name])
            break
        note = f"the model's parameters gained {gained:.3g} nats of evidence after training"
        training = replace(moved.training, notes=(*moved.training.notes, note))
        fit = replace(moved, training=training)
        left = _nats_left(problem, options, time, fit, density, generator)
    finding = ParamsLeft(None, 0.0, named) if left is None else ParamsLeft(*left, named)
    return add_finding(fit, finding)


def _nats_left(
    problem: Problem,
    options: Options,
    time: TimePlan,
    fit: Fit,
    density: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> tuple[float, float] | None:
    count = _num_draws(problem.log_joint)
    z, log_q = fit.draws.z[:count], fit.draws.log_q[:count]
    with options.progress.stage("judging the model's parameters", 1, unit="look"):
        budget = time.whole.part(TIME.check)
        leaves = problem.log_joint.named_parameters()
        left = nats_left(density, z, log_q, leaves, generator, budget)
        if budget.over():
            time.leave_out("the end of the look at the model's parameters")
        return left


def _num_draws(log_joint: LogJoint) -> int:
    """Draws on which parameters are judged: fewer where one run of the model is large."""
    most = SCORING.loop_draws if log_joint.how == "loop" else SCORING.draws
    most = min(most, CALL_SIZES.check // max(1, log_joint.size))
    return max(SCORING.fewest_draws, most)
