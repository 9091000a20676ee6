"""Multimodal fits: a guide on each mode, and the weights with which they make the posterior."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.mixture_weights import mixture_weights
from pyro_nfvi._gaussian_vi.mode_search import Modes
from pyro_nfvi._train.left_out_particles import LeftOut
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.infer._findings import find
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import FLOW_GROWTH, GAPS, MULTIMODAL
from pyro_nfvi.infer._settings import Candidate, FittedMode
from pyro_nfvi.infer._stages.flow_growth import (
    ENDS,
    bound_gain,
    candidate,
    good_enough,
    grow_flow,
    nearly_exact,
    reported,
)
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.training import TrainingPlan
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training


def fit_modes(
    problem: Problem,
    options: Options,
    time: TimePlan,
    single: Fit,
    start: WarmStart,
    modes: Modes,
    tried: tuple[Candidate, ...],
) -> tuple[Fit | None, tuple[Candidate, ...]]:
    """Fit a Gaussian, and flows inside it where it is not good enough, to every mode.

    Each component is trained for itself: a reverse-KL fit that starts in a mode stays there. The
    weights are learnt from importance weights under the exact density of the mixture, so that
    components may touch. Each mode has half of ``max_steps`` (3000 by default), and all together
    three times as many at most; the seconds are shared.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        single: The fit of the one best Gaussian.
        start: Result of the stages before.
        modes: A Gaussian on each mode.
        tried: Candidates that were tried so far.

    Returns:
        The mixture's fit, None where one Gaussian has a higher bound; and all candidates.
    """
    # The components and the mixture are scored on as many draws each.
    draws = MULTIMODAL.weight_draws * (len(modes) + 2)
    if not time.affords(draws, "a mixture of the modes"):
        return None, tried
    with time.watch.part("set_up"):
        guides = [_gaussian(problem, modes, place) for place in range(len(modes))]
    training = dataclasses.replace(single.training, notes=())
    parts = [score_guide(problem, options, time, guide, training) for guide in guides]
    best, errors = _mixed(problem, options, time, parts, training)
    kept = bound_gain(best, single, options.objective) > 0
    tried += (candidate(f"{len(parts)} Gaussians", best, time.whole.spent(), kept=kept),)
    if not kept:
        return None, tried
    notes, interrupted = start.notes, start.interrupted
    whole = options.max_steps + options.more_steps
    most = max(FLOW_GROWTH.fewest_steps, int(MULTIMODAL.mode_steps * whole))
    steps = MULTIMODAL.all_steps * whole
    number, begun = 1, time.whole.spent()
    order = [place for place in _by_cost(best, parts) if not nearly_exact(parts[place])]
    losses: list[Tensor] = []
    for place in order:
        if good_enough(best) or interrupted or steps < FLOW_GROWTH.fewest_steps:
            break
        if time.training.over():
            time.leave_out("flows on some of the modes")
            break
        plan = dataclasses.replace(
            TrainingPlan.after(start, min(steps, most)),
            number=number,
            notes=notes,
            train_params=False,  # each mode would train them its own way
        )
        grown = grow_flow(
            problem, options, time, guides[place], parts[place], plan, accepted=nearly_exact
        )
        fit, notes, interrupted = grown.best, (*notes, *grown.notes), grown.interrupted
        number += len(grown.tried)
        steps -= sum(one.steps for one in grown.tried)
        named = (dataclasses.replace(c, flow=f"mode {place + 1}, {c.flow}") for c in grown.tried)
        tried += tuple(named)
        if fit is not parts[place]:
            parts[place] = fit
            losses.append(fit.losses)
        if fit.why_stopped in ENDS:
            break
    if losses:
        training = _joint_record([part for part in parts if len(part.losses)], losses)
        deep, new_errors = _mixed(problem, options, time, parts, training)
        kept = bound_gain(deep, best, options.objective) > 0
        tried += (candidate("mixture of these", deep, time.whole.spent() - begun, kept=kept),)
        if kept:
            best, errors = deep, new_errors
    fit = reported(best, tried, notes)
    return _described(fit, modes, errors), tried


def _gaussian(problem: Problem, modes: Modes, place: int) -> AutoFlow:
    with problem.own_names():
        guide = problem.guide(None)
    guide.start_at(modes.normals.loc[place], modes.normals.factor[place])
    return guide


def _mixed(
    problem: Problem, options: Options, time: TimePlan, parts: list[Fit], training: Training
) -> tuple[Fit, Tensor]:
    """Put fits of the modes together, learn the weights, and score the whole."""
    with time.watch.part("set_up"), problem.own_names():
        guide = AutoMixture(problem.model, len(parts), [_formula(part) for part in parts])
        guide.setup(*problem.log_joint.args, **problem.log_joint.kwargs)
        guide.adopt([part.guide for part in parts])
    density = guide.density()
    most = MULTIMODAL.weight_draws
    count = min(most, *(len(part.draws.z) for part in parts))
    with time.watch.part("scoring"), torch.no_grad():
        z = torch.cat([part.draws.z[:count] for part in parts])
        log_p = torch.cat([part.draws.log_p[:count] for part in parts])
        each = torch.cat([density.components(rows) for rows in z.split(most)])
        weights, errors = mixture_weights(log_p, each)
    guide.set_weights(weights)
    made = dataclasses.replace(training, settings=settings_of(problem, options, guide))
    return score_guide(problem, options, time, guide, made), errors


def _formula(part: Fit) -> str | None:
    return part.training.settings.flow or None


def _by_cost(mixture: Fit, parts: list[Fit]) -> list[int]:
    """Order components by what their gaps cost the mixture; leave out cheap ones."""
    costs = []
    for weight, part in zip(mixture.guide.weights.tolist(), parts, strict=True):
        try:
            costs.append(weight * iw_gap(part.draws.log_w))
        except WeightError:
            costs.append(math.inf)
    order = sorted(range(len(parts)), key=lambda place: -costs[place])
    return [place for place in order if costs[place] > GAPS.mode_cost]


def _joint_record(parts: list[Fit], losses: list[Tensor]) -> Training:
    """Make one record of all trainings."""
    trained = [part.training for part in parts if part.training.settings.flow]
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
        notes=tuple(dict.fromkeys(note for one in trained for note in one.notes)),
    )


def _described(fit: Fit, modes: Modes, errors: Tensor) -> Fit:
    """Write down where the modes are, their weights, and how many starts found each."""
    latent, guide = fit.latent, fit.guide
    values, _ = latent.constrain(modes.normals.loc.to(latent.init_loc))
    found = tuple(
        FittedMode(
            weight,
            None if math.isnan(error) else error,
            int(modes.hits[place]),
            {name: value[place].tolist() for name, value in values.items()},
        )
        for place, (weight, error) in enumerate(zip(guide.weights.tolist(), errors.tolist()))
    )
    settings = dataclasses.replace(fit.training.settings, modes=found)
    lines = [_line(place, mode, modes.num_starts) for place, mode in enumerate(found, start=1)]
    alone = sum(mode.starts <= 1 for mode in found)
    if alone:
        lines.append(f"{alone} of the modes were found by one start alone: expect more of them")
    training = dataclasses.replace(
        fit.training, settings=settings, notes=(*fit.training.notes, *lines)
    )
    return dataclasses.replace(fit, training=training)


def _line(place: int, mode: FittedMode, num_starts: int) -> str:
    """Describe a mode, with where it is in the first numbers."""
    numbers = []
    for name, value in mode.at.items():
        flat = torch.tensor(value).flatten().tolist()
        labels = [f"{name}[{i}]" for i in range(len(flat))] if isinstance(value, list) else [name]
        numbers += [f"{label} {number:.3g}" for label, number in zip(labels, flat)]
    error = "" if mode.weight_se is None else f" ± {mode.weight_se:.3f}"
    more = ", ..." if len(numbers) > MULTIMODAL.named else ""
    return (
        f"mode {place}: weight {mode.weight:.3f}{error}, {mode.starts} of {num_starts} "
        f"starts ended there, around {', '.join(numbers[: MULTIMODAL.named])}{more}"
    )
