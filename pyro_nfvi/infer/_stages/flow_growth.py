"""``guide="auto"``: a Gaussian, then flows, for as long as more of them gain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._optim.convergence import StopReason
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.errors import DivergedError, WeightError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._elementwise import Elementwise
from pyro_nfvi.flows._tail_transform import TailTransformer
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._checks.tails import heavy_tails, with_tail
from pyro_nfvi.infer._fit import Fit, Training
from pyro_nfvi.infer._run import WHOLE, FitRun
from pyro_nfvi.objectives._objective import Objective

#: Largest dimension for autoregressive layers, whose path gradient costs O(D^2) a particle.
_IAF_DIM = 40
#: A flow is good where the tail of its weights is light and the gap this small, or where the gap
#: is so small and the weights so even that the tail does not matter.
_GAP, _SMALL_GAP, _ESS = 0.1, 0.02, 0.9
#: Ways in which a training ends after which no other begins.
ENDS = ("interrupted", "callback", "max_seconds")
#: Fewest steps with which one more flow is begun.
FEWEST = 300


@dataclass(frozen=True)
class Rung:
    """What one stage of the ladder came to.

    Attributes:
        flow: Its formula; empty for the Gaussian.
        elbo: Its bound, in nats, and standard error ``elbo_se``.
        khat: Shape of the tail of its weights.
        ess: Effective share of its draws.
        steps: Steps that it took.
        seconds: Time that it took.
        kept: Whether it was better than the one before.
        tail: What ``khat`` says, in words.
    """

    flow: str
    elbo: float
    elbo_se: float
    khat: float
    ess: float
    steps: int
    seconds: float
    kept: bool
    tail: str = ""

    def __str__(self) -> str:
        return (
            f"{self.flow or 'Gaussian'}: ELBO {self.elbo:.3f} ± {self.elbo_se:.3f} nats, "
            f"{self.tail or f'k-hat {self.khat:.2f}'}, ESS {100 * self.ess:.0f} %, "
            f"{self.steps} steps, {self.seconds:.1f} s"
            f"{'' if self.kept else '; no better, not kept'}"
        )


def rungs(dim: int) -> tuple[str, ...]:
    """Formulas of the flows to try, each the one before with layers in front of it.

    Example:
        >>> rungs(10)
        ('iaf*2', 'nsf*2|iaf*2')
    """
    if dim == 1:
        return ("nsf-ar", "nsf-ar|nsf-ar")
    if dim <= _IAF_DIM:
        return ("iaf*2", "nsf*2|iaf*2")
    return ("realnvp*6", "realnvp*6|realnvp*6")


def good_enough(fit: Fit) -> bool:
    """Whether more layers have little left to gain.

    Nothing that is computed from a fit's own draws sees a mode that it lost.
    """
    gap, even = _gap_and_even(fit)
    return (fit.tail.close and gap < _GAP) or (gap < _SMALL_GAP and even)


def nearly_exact(fit: Fit) -> bool:
    """The same for one mode of several, whose gaps and tails add up in the mixture."""
    gap, even = _gap_and_even(fit)
    return gap < _SMALL_GAP and (even or fit.tail.close)


def _gap_and_even(fit: Fit) -> tuple[float, bool]:
    """Gap between evidence and bound, infinite where unknown; and whether weights are even."""
    draws = fit.draws
    if not draws.exact:
        return math.inf, False
    try:
        return iw_gap(draws.log_w), fit.ess > _ESS * len(draws.z)
    except WeightError:
        return math.inf, False


def add_flows(
    run: FitRun,
    log_joint: LogJoint,
    guide: AutoFlow,
    best: Fit | None,
    *,
    travels: bool,
    notes: list[str],
    max_steps: int,
    first: int = 1,
    enough: Callable[[Fit], bool] = good_enough,
    tail: bool = False,
) -> tuple[Fit, list[Rung]]:
    """Put a flow inside a Gaussian, and more layers in front of that, for as long as they gain.

    A stage is left out when the one before is good enough, and its result is not kept when its
    bound is lower. All share ``max_steps``, and the seconds of the options. What happened on the
    way is added to ``notes``.

    Args:
        run: The call that this belongs to.
        log_joint: The model's log joint.
        guide: The Gaussian, set up.
        best: Its fit; None where it cannot stand for one.
        travels: Whether its map has a way to go.
        notes: Lines for the report.
        max_steps: Most steps of all stages together.
        first: Number of the first training, after which its checkpoint is named.
        enough: When no more is added.
        tail: Put a tail layer at the output from the first flow on; else where the weighted draws
            ask for one.
    """
    tried: list[Rung] = []
    before, steps = list(notes), max_steps
    flows = rungs(guide.latent.dim)
    for stage, formula in enumerate(flows, start=1):
        over = run.interrupted or steps < FEWEST
        if best is not None and (over or enough(best)):
            break
        if best is not None and run.time.training.over():
            run.time.leave_out("a flow, or more layers of it")
            break
        begun = run.time.whole.spent()
        tail = tail or (best is not None and heavy_tails(best))
        if tail:
            formula = with_tail(formula)
        # The first flow leaves a third of the steps to the next, if there will be one.
        share = steps if stage == len(flows) else max(min(steps, FEWEST), 2 * steps // 3)
        try:
            fit = train_from(
                guide if best is None else best.guide,
                formula,
                run,
                log_joint,
                travels=travels,
                notes=before if stage == 1 else [],
                max_steps=share,
                stage=first + stage - 1,
            )
        except KeyboardInterrupt:  # while the engine was built; training returns its fit
            if best is None:
                raise
            notes.append(f"interrupted before {formula} was trained")
            run.interrupted = True
            break
        except DivergedError as error:
            if best is None:
                raise
            notes.append(f"{formula} diverged: {error}")
            break
        steps -= len(fit.losses)
        gained = best is None or gain(fit, best, run.options.objective) > 0
        tried.append(rung_of(formula, fit, run.time.whole.spent() - begun, kept=gained))
        if not gained:
            break
        best = fit if best is None or not best.training.settings["flow"] else joined(best, fit)
        if fit.why_stopped in ENDS:
            break
    assert best is not None
    return best, tried


def gaussian_fit(
    run: FitRun, guide: AutoFlow, log_joint: LogJoint, gaussian: GaussianFit, notes: list[str]
) -> Fit:
    """Judge the Gaussian alone, and wrap it up as a fit."""
    seconds = run.time.whole.spent()
    timing = dict.fromkeys(("fit", "evaluate", "total", "capture", "compile"), 0.0)
    timing |= {
        "setup": seconds,
        "step": 0.0,
        "steps_per_s": len(gaussian.losses) / max(1e-9, seconds),
    }
    last, most = len(gaussian.losses), run.options.max_steps
    if run.interrupted:
        text = "Interrupted while other modes were looked for: there may be more."
        reason = StopReason("interrupted", text)
    elif most < WHOLE:
        text = f"max_steps={most} left {last} last steps to the Gaussian stage."
        reason = StopReason("max_steps", text)
    else:
        text = f"The Gaussian stage took all of its {last} last steps."
        reason = StopReason("converged", text)
    training = Training(
        gaussian.losses,
        reason,
        "svi",
        "the Gaussian stage runs in PyTorch",
        timing,
        run.settings(guide, log_joint),
        tuple(notes),
    )
    return run.judge(guide, log_joint, training)


def train_from(start: AutoFlow, formula: str, run: FitRun, log_joint: LogJoint, **how: Any) -> Fit:
    """Train a guide of a formula that takes over all of another's layers, and judge it.

    Args:
        start: The guide to start from; it stays as it is.
        formula: The flow, whose last layers are those of the other.
        run: The call that this belongs to.
        log_joint: The model's log joint.
        **how: As :meth:`FitRun.train` has it.
    """
    with run.own_names():
        guide = AutoFlow(run.model, formula, outer="whitened")
        guide.setup(*run.args, **run.kwargs)
        adopt(start, guide)
        return run.train(guide, log_joint, **how)


def adopt(old: AutoFlow, new: AutoFlow) -> None:
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
    """Whether a tail layer, which is the identity at first, stands at the output."""
    last = layers[-1] if layers else None
    return isinstance(last, Elementwise) and isinstance(last.transformer, TailTransformer)


def _layers(guide: AutoFlow) -> list[Flow]:
    flow = guide._modules.get("flow")
    if flow is None:
        return []
    return list(_flat(flow)) if isinstance(flow, Flow) else []


def _flat(flow: Flow) -> list[Flow]:
    if isinstance(flow, Chain):
        return [leaf for part in flow.flows for leaf in _flat(part)]  # type: ignore[arg-type]
    return [flow]


def gain(new: Fit, old: Fit, objective: Objective) -> float:
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


def rung_of(flow: str, fit: Fit, seconds: float, *, kept: bool) -> Rung:
    """Sum up a fit as a stage of the ladder."""
    share = fit.ess / max(1, len(fit.draws.z))
    steps = len(fit.losses)
    return Rung(flow, fit.elbo, fit.elbo_se, fit.khat, share, steps, seconds, kept, str(fit.tail))


def joined(before: Fit, after: Fit) -> Fit:
    """The later fit, with the losses of both trainings."""
    losses = torch.cat([before.training.losses, after.training.losses])
    notes = (*before.training.notes, *after.training.notes)
    timing = dict(after.training.timing)
    for name in ("fit", "capture", "compile"):
        timing[name] += before.training.timing[name]
    timing["steps_per_s"] = len(losses) / max(1e-9, timing["fit"])
    timing["step"] = timing["fit"] / max(1, len(losses))
    training = dataclasses.replace(
        after.training,
        losses=losses,
        notes=notes,
        timing=timing,
    )
    return dataclasses.replace(after, training=training)


def told(fit: Fit, tried: list[Rung], notes: list[str], total: float) -> Fit:
    """Write down what was tried, and what of it was kept."""
    kept = fit.training.settings["flow"] or "the Gaussian alone"
    lines = [*dict.fromkeys([*notes, *fit.training.notes])]
    lines += [f"auto: {rung}" for rung in tried]
    why = "good enough" if good_enough(fit) else "the best of what was tried"
    lines.append(f"auto: {kept} is kept, {why}")
    timing = {**fit.training.timing, "total": total}
    reason = fit.why_stopped
    if sum(rung.steps > 0 for rung in tried if rung.flow) > 1:
        told = f"{len(fit.losses)} steps in all that is kept; of the last training: {reason.detail}"
        reason = StopReason(str(reason), told, reason.unfinished)
    settings = {**fit.training.settings, "tried": [dataclasses.asdict(rung) for rung in tried]}
    training = dataclasses.replace(
        fit.training,
        notes=tuple(lines),
        timing=timing,
        settings=settings,
        why_stopped=reason,
    )
    return dataclasses.replace(fit, training=training)
