"""Several modes: a fit of each, and the weights with which they make the posterior."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.mixture_weights import mixture_weights
from pyro_nfvi._gaussian_vi.mode_search import Modes
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.infer._findings import LeftOut, find
from pyro_nfvi.infer._fit import Fit, Training
from pyro_nfvi.infer._run import FitRun
from pyro_nfvi.infer._stages.flow_growth import (
    ENDS,
    FEWEST,
    Rung,
    add_flows,
    gain,
    good_enough,
    nearly_exact,
    rung_of,
    told,
)

#: Draws of each component from which the weights are learnt.
_WEIGH = 1000
#: A component whose gap costs the mixture less than this, in nats, takes no flow.
_COSTS = 0.005
#: Numbers by which a line of the report says where a mode is.
_NAMED = 6


def fit_modes(
    run: FitRun, log_joint: LogJoint, single: Fit, modes: Modes, tried: list[Rung]
) -> Fit | None:
    """Fit a Gaussian, and flows inside it where it is not good enough, to every mode.

    Each component is trained for itself: a reverse-KL fit that starts in a mode stays there. The
    weights are learnt from importance weights under the exact density of the mixture, so that
    components may touch. Each mode has half of ``max_steps`` (3000 by default), and all together
    three times as many at most; the seconds are shared.

    Args:
        run: The call that this belongs to.
        log_joint: The model's log joint.
        single: The fit of the one best Gaussian.
        modes: A Gaussian on each mode.
        tried: What was tried so far; rungs are added.

    Returns:
        The mixture's fit, not yet complete; None where one Gaussian has a higher bound.
    """
    # The components and the mixture are scored on as many draws each.
    draws = _WEIGH * (len(modes) + 2)
    if not run.time.affords(draws, "a mixture of the modes"):
        return None
    guides = [_gaussian(run, modes, place) for place in range(len(modes))]
    training = _empty(single.training)
    parts = [run.judge(guide, log_joint, _copied(training)) for guide in guides]
    best, errors = _mixed(run, log_joint, parts, training)
    tried.append(rung_of(f"{len(parts)} Gaussians", best, run.time.whole.spent(), kept=True))
    if gain(best, single, run.options.objective) <= 0:
        tried[-1] = dataclasses.replace(tried[-1], kept=False)
        return None
    notes = list(run.notes)
    # Half of the steps for each mode, and three times as many together at most.
    whole = run.options.max_steps + run.options.more_steps
    most, steps = max(FEWEST, whole // 2), 3 * whole
    stage, begun = 1, run.time.whole.spent()
    order = [place for place in _by_cost(best, parts) if not nearly_exact(parts[place])]
    losses: list[Tensor] = []
    for place in order:
        if good_enough(best) or run.interrupted or steps < FEWEST:
            break
        if run.time.training.over():
            run.time.leave_out("flows on some of the modes")
            break
        share = min(steps, most)
        fit, rungs = add_flows(
            run,
            log_joint,
            guides[place],
            parts[place],
            travels=False,
            notes=notes,
            max_steps=share,
            first=stage,
            enough=nearly_exact,
        )
        stage += len(rungs)
        steps -= sum(rung.steps for rung in rungs)
        tried += [dataclasses.replace(r, flow=f"mode {place + 1}, {r.flow}") for r in rungs]
        if fit is not parts[place]:
            parts[place] = fit
            losses.append(fit.losses)
        if fit.why_stopped in ENDS:
            break
    if losses:
        training = _joined(training, [part for part in parts if len(part.losses)], losses)
        deep, new_errors = _mixed(run, log_joint, parts, training)
        kept = gain(deep, best, run.options.objective) > 0
        tried.append(rung_of("mixture of these", deep, run.time.whole.spent() - begun, kept=kept))
        if kept:
            best, errors = deep, new_errors
    return _described(told(best, tried, notes, run.time.whole.spent()), modes, errors)


def _gaussian(run: FitRun, modes: Modes, place: int) -> AutoFlow:
    with run.own_names():
        guide = AutoFlow(run.model, None, outer="whitened")
        guide.setup(*run.args, **run.kwargs)
    guide.start_at(modes.normals.loc[place], modes.normals.factor[place])
    return guide


def _mixed(
    run: FitRun, log_joint: LogJoint, parts: list[Fit], training: Training
) -> tuple[Fit, Tensor]:
    """Put fits of the modes together, learn the weights, and judge the whole."""
    with run.own_names():
        guide = AutoMixture(run.model, len(parts), [_formula(part) for part in parts])
        guide.setup(*run.args, **run.kwargs)
        guide.adopt([part.guide for part in parts])
    density = guide.density()
    count = min(_WEIGH, *(len(part.draws.z) for part in parts))
    with torch.no_grad():
        z = torch.cat([part.draws.z[:count] for part in parts])
        log_p = torch.cat([part.draws.log_p[:count] for part in parts])
        each = torch.cat([density.components(rows) for rows in z.split(_WEIGH)])
    weights, errors = mixture_weights(log_p, each)
    guide.set_weights(weights)
    settings = {**training.settings, **run.settings(guide, log_joint)}
    made = dataclasses.replace(_copied(training), settings=settings)
    return run.judge(guide, log_joint, made), errors


def _formula(part: Fit) -> str | None:
    return part.training.settings["flow"] or None


def _by_cost(mixture: Fit, parts: list[Fit]) -> list[int]:
    """Components in the order of what their gaps cost the mixture; cheap ones left out."""
    costs = []
    for weight, part in zip(mixture.guide.weights.tolist(), parts, strict=True):
        try:
            costs.append(weight * iw_gap(part.draws.log_w))
        except WeightError:
            costs.append(math.inf)
    order = sorted(range(len(parts)), key=lambda place: -costs[place])
    return [place for place in order if costs[place] > _COSTS]


def _empty(training: Training) -> Training:
    return dataclasses.replace(training, notes=())


def _copied(training: Training) -> Training:
    return dataclasses.replace(training, timing=dict(training.timing))


def _joined(first: Training, parts: list[Fit], losses: list[Tensor]) -> Training:
    """One account of all trainings."""
    trained = [part.training for part in parts if part.training.settings["flow"]]
    timing: dict[str, float] = dict(trained[-1].timing)
    for name in ("fit", "capture", "compile"):
        timing[name] = sum(one.timing[name] for one in trained)
    steps = sum(map(len, losses))
    timing["setup"] = first.timing["setup"]
    timing["steps_per_s"] = steps / max(1e-9, timing["fit"])
    timing["step"] = timing["fit"] / max(1, steps)
    # What ended the whole, else what left something to gain, else the last.
    early = [one for one in trained if one.why_stopped in (*ENDS, "not_finite")]
    cut = [one for one in trained if one.why_stopped == "max_steps"]
    last = (early or cut or trained)[-1]
    left = [found for one in trained if (found := find(one.findings, LeftOut)) is not None]
    worst = max(left, key=lambda found: found.share, default=None)
    return dataclasses.replace(
        last,
        findings=() if worst is None else (worst,),
        losses=torch.cat(losses),
        timing=timing,
        notes=tuple(dict.fromkeys(note for one in trained for note in one.notes)),
    )


def _described(fit: Fit, modes: Modes, errors: Tensor) -> Fit:
    """Write down where the modes are, their weights, and how many starts found each."""
    latent, guide = fit.latent, fit.guide
    values, _ = latent.constrain(modes.normals.loc.to(latent.init_loc))
    found: list[dict[str, Any]] = []
    for place, (weight, error) in enumerate(zip(guide.weights.tolist(), errors.tolist())):
        found.append(
            {
                "weight": weight,
                "weight_se": None if math.isnan(error) else error,
                "starts": int(modes.hits[place]),
                "at": {name: value[place].tolist() for name, value in values.items()},
            }
        )
    settings = {**fit.training.settings, "modes": found}
    lines = [_line(place, mode, modes.num_starts) for place, mode in enumerate(found, start=1)]
    alone = sum(mode["starts"] <= 1 for mode in found)
    if alone:
        lines.append(f"{alone} of the modes were found by one start alone: expect more of them")
    training = dataclasses.replace(
        fit.training, settings=settings, notes=(*fit.training.notes, *lines)
    )
    return dataclasses.replace(fit, training=training)


def _line(place: int, mode: dict[str, Any], num_starts: int) -> str:
    """One mode in words, with where it is in the first numbers."""
    numbers = []
    for name, value in mode["at"].items():
        flat = torch.tensor(value).flatten().tolist()
        labels = [f"{name}[{i}]" for i in range(len(flat))] if isinstance(value, list) else [name]
        numbers += [f"{label} {number:.3g}" for label, number in zip(labels, flat)]
    error = "" if mode["weight_se"] is None else f" ± {mode['weight_se']:.3f}"
    more = ", ..." if len(numbers) > _NAMED else ""
    return (
        f"mode {place}: weight {mode['weight']:.3f}{error}, {mode['starts']} of {num_starts} "
        f"starts ended there, around {', '.join(numbers[:_NAMED])}{more}"
    )
