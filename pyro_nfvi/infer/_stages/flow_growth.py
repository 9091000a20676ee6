"""Flow growth: candidate flows with more and more layers, until the bound no longer rises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.diagnostics._recipe import VERDICT
from pyro_nfvi.errors import DivergedError, WeightError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._elementwise import Elementwise
from pyro_nfvi.flows._tail_transform import TailTransformer
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._checks.tails import heavy_tails, with_tail
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import FLOW_GROWTH, GAPS, GAUSSIAN_START
from pyro_nfvi.infer._settings import Candidate
from pyro_nfvi.infer._stages.candidate_flows import candidate_flows
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.training import TrainingPlan, train
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training
from pyro_nfvi.objectives._objective import Objective

#: Ways in which a training ends after which no other begins.
ENDS = ("interrupted", "callback", "max_seconds")


def good_enough(fit: Fit) -> bool:
    """Tell whether more layers have little left to gain.

    Nothing that is computed from a fit's own draws sees a mode that it lost.
    """
    gap, even = _gap_and_even(fit)
    return (fit.tail.close and gap < VERDICT.gap) or (gap < GAPS.negligible and even)


def nearly_exact(fit: Fit) -> bool:
    """Tell whether one mode of several is exact: their gaps and tails add up in the mixture."""
    gap, even = _gap_and_even(fit)
    return gap < GAPS.negligible and (even or fit.tail.close)


def _gap_and_even(fit: Fit) -> tuple[float, bool]:
    """Gap between evidence and bound, infinite where unknown; and whether weights are even."""
    draws = fit.draws
    if not draws.exact:
        return math.inf, False
    try:
        return iw_gap(draws.log_w), fit.ess > VERDICT.even * len(draws.z)
    except WeightError:
        return math.inf, False


@dataclass(frozen=True, eq=False)
class Growth:
    """Result of a stage that trains candidates.

    Attributes:
        best: The best fit.
        tried: The candidates that were trained.
        notes: Lines for the report about what happened on the way.
        interrupted: True if Ctrl-C came while an engine was built.
    """

    best: Fit
    tried: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def grow_flow(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow,
    best: Fit | None,
    plan: TrainingPlan,
    *,
    accepted: Callable[[Fit], bool] = good_enough,
    tail: bool = False,
) -> Growth:
    """Put a flow inside a Gaussian, then more layers in front, until they no longer gain.

    A candidate is left out when the one before is good enough, and is not kept when its bound is
    lower. All share the steps of the plan, and the time.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The Gaussian, set up.
        best: Its fit; None where it cannot stand for one.
        plan: Steps of all candidates together, and the number of the first training.
        accepted: Tells whether a fit is good enough.
        tail: Put a tail layer at the output from the first flow on; else where the weighted draws
            ask for one.
    """
    tried: tuple[Candidate, ...] = ()
    steps = plan.max_steps
    flows = candidate_flows(problem.latent.dim)
    for place, formula in enumerate(flows):
        over = plan.interrupted or steps < FLOW_GROWTH.fewest_steps
        if best is not None and (over or accepted(best)):
            break
        if best is not None and time.training.over():
            time.leave_out("a flow, or more layers of it")
            break
        begun = time.whole.spent()
        tail = tail or (best is not None and heavy_tails(best))
        if tail:
            formula = with_tail(formula)
        # The first flow leaves a third of the steps to the next, if there will be one.
        fewest = min(steps, FLOW_GROWTH.fewest_steps)
        share = steps if place == len(flows) - 1 else max(fewest, 2 * steps // 3)
        one = dataclasses.replace(
            plan,
            max_steps=share,
            number=plan.number + place,
            notes=plan.notes if place == 0 else (),
        )
        try:
            start = guide if best is None else best.guide
            fit = train_from(problem, options, time, start, formula, one)
        except KeyboardInterrupt:  # while the engine was built; training returns its fit
            if best is None:
                raise
            line = f"interrupted before {formula} was trained"
            return Growth(best, tried, (line,), interrupted=True)
        except DivergedError as error:
            if best is None:
                raise
            return Growth(best, tried, (f"{formula} diverged: {error}",))
        steps -= len(fit.losses)
        gained = best is None or bound_gain(fit, best, options.objective) > 0
        tried += (candidate(formula, fit, time.whole.spent() - begun, kept=gained),)
        if not gained:
            break
        grown = best is not None and best.training.settings.flow
        best = with_earlier_losses(best, fit) if best is not None and grown else fit
        if fit.why_stopped in ENDS:
            break
    assert best is not None
    return Growth(best, tried)


def gaussian_fit(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow,
    gaussian: GaussianFit,
    start: WarmStart,
) -> Fit:
    """Score the Gaussian alone, and wrap it up as a fit."""
    last, most = len(gaussian.losses), options.max_steps
    if start.interrupted:
        text = "Interrupted while other modes were looked for: there may be more."
        reason = StopReason("interrupted", text)
    elif most < GAUSSIAN_START.whole_steps:
        text = f"max_steps={most} left {last} last steps to the Gaussian stage."
        reason = StopReason("max_steps", text)
    else:
        text = f"The Gaussian stage took all of its {last} last steps."
        reason = StopReason("converged", text)
    training = Training(
        gaussian.losses,
        reason,
        "eager",
        "the Gaussian stage runs in PyTorch",
        settings_of(problem, options, guide),
        start.notes,
    )
    return score_guide(problem, options, time, guide, training)


def train_from(
    problem: Problem,
    options: Options,
    time: TimePlan,
    start: AutoFlow,
    formula: str,
    plan: TrainingPlan,
) -> Fit:
    """Train a guide of a formula that takes over all of another's layers, and score it.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        start: The guide to start from; it stays as it is.
        formula: The flow, whose last layers are those of the other.
        plan: Steps and particles.
    """
    with problem.own_names():
        with time.watch.part("set_up"):
            guide = problem.guide(formula)
            copy_layers(start, guide)
        return train(problem, options, time, guide, plan)


def copy_layers(old: AutoFlow, new: AutoFlow) -> None:
    """Copy all of the old guide into the last layers of the new one, which starts where it is."""
    new_outer, old_outer = new._modules["outer"], old._modules["outer"]
    assert new_outer is not None
    assert old_outer is not None
    new_outer.load_state_dict(old_outer.state_dict())
    layers, before = _layers(new), _layers(old)
    if _is_tail(layers) and not _is_tail(before):
        layers = layers[:-1]
    for layer, given in zip(layers[len(layers) - len(before) :], before, strict=True):
        layer.load_state_dict(given.state_dict())


def _is_tail(layers: list[Flow]) -> bool:
    """Tell whether a tail layer, which is the identity at first, stands at the output."""
    last = layers[-1] if layers else None
    return isinstance(last, Elementwise) and isinstance(last.transformer, TailTransformer)


def _layers(guide: AutoFlow) -> list[Flow]:
    flow = guide._modules.get("flow")
    if flow is None:
        return []
    return [layer.flow for layer in flow.layers()] if isinstance(flow, Flow) else []


def bound_gain(new: Fit, old: Fit, objective: Objective) -> float:
    """Rise of the bound in nats; what noise may have made of it counts for the new one.

    Where draws have no finite weight the bound is minus infinity, and never a gain.
    """
    (after, error), (before, other) = _bound(new, objective), _bound(old, objective)
    if not math.isfinite(after):
        return -math.inf
    if not math.isfinite(before):
        return math.inf
    return after - before + 2 * math.hypot(error, other)


def _bound(fit: Fit, objective: Objective) -> tuple[float, float]:
    """The bound that is maximised, of a fit's draws, and its standard error."""
    if objective.additive or not objective.from_weights:
        return fit.elbo, fit.elbo_se
    terms = objective.terms(fit.draws.log_w)
    terms = terms[torch.isfinite(terms)].double()
    if len(terms) < 2:
        return -math.inf, 0.0
    return float(terms.mean()), float(terms.std()) / math.sqrt(len(terms))


def candidate(flow: str, fit: Fit, seconds: float, *, kept: bool) -> Candidate:
    """Sum up the fit of a candidate."""
    share = fit.ess / max(1, len(fit.draws.z))
    steps = len(fit.losses)
    tail = str(fit.tail)
    return Candidate(flow, fit.elbo, fit.elbo_se, fit.khat, share, steps, seconds, kept, tail)


def with_earlier_losses(before: Fit, after: Fit) -> Fit:
    """Return the later fit, with the losses of both trainings."""
    losses = torch.cat([before.training.losses, after.training.losses])
    notes = (*before.training.notes, *after.training.notes)
    training = dataclasses.replace(after.training, losses=losses, notes=notes)
    return dataclasses.replace(after, training=training)


def reported(fit: Fit, tried: Sequence[Candidate], notes: Sequence[str]) -> Fit:
    """Add to a fit's record what was tried, and what of it was kept."""
    alone = "the Gaussian"
    if isinstance(fit.guide, AutoFlow) and fit.guide.holds_mixture:
        alone = "the product of mixtures"
    elif isinstance(fit.guide, AutoFlow) and fit.guide.holds_conditional:
        alone = "the Gaussian in conditional coordinates"
    kept = fit.training.settings.flow or f"{alone} alone"
    lines = [*dict.fromkeys([*notes, *fit.training.notes])]
    lines += [f"auto: {one}" for one in tried]
    why = "good enough" if good_enough(fit) else "the best of what was tried"
    lines.append(f"auto: {kept} is kept, {why}")
    reason = fit.why_stopped
    if sum(one.steps > 0 for one in tried if one.flow) > 1:
        detail = (
            f"{len(fit.losses)} steps in all that is kept; of the last training: {reason.detail}"
        )
        reason = StopReason(str(reason), detail, reason.unfinished)
    settings = dataclasses.replace(fit.training.settings, tried=tuple(tried))
    training = dataclasses.replace(
        fit.training,
        notes=tuple(lines),
        settings=settings,
        why_stopped=reason,
    )
    return dataclasses.replace(fit, training=training)
