"""The stages of a fit whose latents stand in the rows of plates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._random import fold_in
from pyro_nfvi._train.density_selection import choose_density, drop_if_changed
from pyro_nfvi.diagnostics._recipe import VERDICT
from pyro_nfvi.errors import ModelError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.pyro_density import check_by_pyro
from pyro_nfvi.infer._checks.row_weights import (
    GlobalWeights,
    RowGaps,
    judge_globals,
    row_gaps,
    separable,
    top_plates,
)
from pyro_nfvi.infer._findings import CrossedPlates, Finding, PoorRows, RowsUnseen, TimeOver
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._plate_structure import crossing
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import PLATES, ROW_START, WORDS
from pyro_nfvi.infer._rows_log_joint import rows_log_joint
from pyro_nfvi.infer._stages.global_calibration import calibrate_globals
from pyro_nfvi.infer._stages.plate_training import check_plate_options, train_rows, untrained
from pyro_nfvi.infer._stages.row_start import start_rows
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws


def fit_plates(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoPlateFlow,
    *,
    fresh: bool,
    reason: str,
) -> PlateFit:
    """Run the stages of a fit of globals and rows: train, judge.

    Args:
        problem: The posterior, at the layout of a mini-batch.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide, set up.
        fresh: True where it was not trained before.
        reason: Reason for the guide.

    Raises:
        ModelError: The model cannot be fitted; the message names the site.
        DivergedError: Gradients were not finite again and again.
    """
    notes, gap = problem.notes, math.inf
    # Numbers of rows that are relative to their prior start where the guide puts them.
    if fresh and options.precondition and not guide._model_informed:
        with time.watch.part("gaussian"):
            lines, gap = _started(problem, options, time, guide)
            notes += lines
    # Steps on a few particles would add more noise than they can gain.
    judged, before = None, dict[str, torch.Tensor]()
    close = max(VERDICT.gap, PLATES.start_gap * sum(guide.layout.sizes.values()))
    if options.automatic and gap < close and not problem.log_joint.parameters():
        training = untrained(problem, options, guide, reason, notes)
        with time.watch.part("checks"):
            fit = judge_rows(
                problem, options, time, guide, training, bare=_at_identity(problem, guide)
            )
        # A Gaussian draws what rows share too narrow: its globals count where they were weighed.
        weighed = fit.draws.exact and fit.verdict == "good"
        if gap < VERDICT.gap or weighed or time.whole.over():
            return fit
        judged = fit
        before = {name: value.clone() for name, value in guide.state_dict().items()}
        notes += ("the Gaussian of all rows was not exact enough, and its flows were trained",)
    training, failed = train_rows(problem, options, time, guide, reason, notes)
    with time.watch.part("checks"):
        fit = judge_rows(problem, options, time, guide, training)
    worse = judged is not None and judged.elbo - fit.elbo > 2 * math.hypot(
        judged.elbo_se, fit.elbo_se
    )
    if judged is not None and worse and failed is None:
        guide.load_state_dict(before)
        line = f"training had not made it better (ELBO {fit.elbo:.2f} nats); it is as it started"
        return replace(
            judged,
            training=replace(judged.training, notes=(*judged.training.notes, line)),
        )
    if failed is not None:
        failed.fit = fit
        raise failed
    return fit


def _started(
    problem: Problem, options: Options, time: TimePlan, guide: AutoPlateFlow
) -> tuple[tuple[str, ...], float]:
    """Move a guide to a Gaussian near the posterior.

    Returns:
        Lines for the report, and the gap of that Gaussian in nats, infinite where it is not known.
    """
    rows = max(guide.layout.sizes.values())
    budget = time.training.part(ROW_START.time_share)
    with options.progress.stage("starting rows", rows, unit="row") as tick:
        found = start_rows(problem, guide, budget, tick)
    if found is None:
        return ("no Gaussian to start from, training starts at init_loc_fn",), math.inf
    if found.arrow is not None and guide.takes_arrow:
        guide.start_at_arrow(found.loc, found.arrow)
        return (found.note,), found.gap
    guide.start_at(found.loc, found.scale)
    return (found.note,), math.inf


@torch.no_grad()
def _at_identity(problem: Problem, guide: AutoPlateFlow) -> bool:
    """Tell whether the flows of a guide are the identity, by draws of one mini-batch."""
    noise = problem.stream("identity")
    rows = problem.log_joint.draw_subsample(noise)
    layout = guide.layout.at({p: i for p, i in rows.items() if p in guide.layout.sizes})
    eps = guide.density(rows).sample_base(8, generator=noise)
    with scoring(guide):
        (z, ladjs), (plain, known) = (
            guide._bind(layout, bare=bare).by_rows(eps) for bare in (False, True)
        )
    pairs = [(z, plain), *zip(ladjs, known)]
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in pairs)


def set_up_rows(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: frozenset[str],
    seed: int,
    guide: AutoPlateFlow,
    options: Options,
    time: TimePlan,
) -> Problem:
    """Build a guide's parameters, and the log joint at the layout of a mini-batch.

    Args:
        model: The model, with discrete sites marked.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        names: Its ``pyro.param`` names.
        seed: Seed of all noise.
        guide: The guide.
        options: Options of the fit.
        time: Clock of the call.

    Raises:
        OptionError: An option that a fit of rows cannot have.
        ModelError: The model cannot be scored; the message names the site.
    """
    check_plate_options(options)
    guide.setup(*args, **kwargs)
    log_joint = rows_log_joint(model, args, kwargs, guide)
    opinion = check_by_pyro(log_joint, time.whole)
    with options.progress.stage("compiling the model", 1, unit="engine") as tick:
        density = choose_density(
            options.engine, log_joint, options.max_steps, budget=time.whole, watch=time.watch
        )
        tick(1)
    log_joint.use(density.compiled)
    time.measure(log_joint)
    unseen = "Pyro's own trace scored no point around the start"
    return Problem(log_joint, names, seed, () if opinion.draws else (unseen,), density)


def judge_rows(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoPlateFlow,
    training: Training,
    *,
    bare: bool = False,
) -> PlateFit:
    """Examine rows, weigh the globals on rows that are drawn anew, and wrap the fit up.

    Args:
        problem: The posterior, at the layout of a mini-batch.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide.
        training: The record of its training.
        bare: Its flows are the identity still, and are not run.
    """
    log_joint, layout, seed = problem.log_joint, guide.layout, problem.seed
    drop_if_changed(log_joint)
    findings: list[Finding] = list(training.findings)
    gaps: list[RowGaps] = []
    for plate in top_plates(layout):
        try:
            with options.progress.stage(f"examining rows of {plate}", 1, unit="look"):
                budget = time.whole.part(0.5)
                found = row_gaps(guide, log_joint, plate, seed, bare=bare, budget=budget)
        except ModelError as error:
            findings.append(RowsUnseen(plate, str(error).rstrip("."), grave=True))
            continue
        gaps.append(found)
        findings.append(poor_rows(found))
    z = torch.zeros(0, 0)
    draws = WeighedDraws(z, z[:, :0].sum(-1), z.sum(-1), exact=False)
    tops = top_plates(layout)
    bound, error_of, rows_se = math.nan, math.nan, 0.0
    if len(gaps) == len(tops) == 1 and separable(log_joint, layout):
        total = layout.sizes[tops[0]]

        def weigh(own: int = seed) -> GlobalWeights:
            with options.progress.stage("weighing globals", total, unit="row") as tick:
                return judge_globals(
                    guide,
                    log_joint,
                    tops[0],
                    own,
                    bare=bare,
                    trained=drawn_rows(training, log_joint, tops[0], total),
                    budget=time.whole,
                    tick=tick,
                )

        weights = weigh()
        whole = weights.share == 1
        if whole and not time.whole.over():
            weights, moves = calibrate_globals(guide, weights, weigh)
            if moves:  # judged on other draws than those that moved them
                weights = weigh(fold_in(seed, "calibrated"))
                line = "the globals were moved to where re-drawn rows weigh them"
                training = replace(training, notes=(*training.notes, line))
            whole = weights.share == 1
        draws = WeighedDraws(weights.z, weights.log_p, weights.log_q, exact=whole)
        bound, error_of, rows_se = weights.elbo, weights.elbo_se, weights.rows_se
        if not whole and draws.z.shape[-1]:
            why = f"only {100 * weights.share:.2g} % of the rows could be looked at"
            if not time.whole.over():
                share = f"{100 * PLATES.judged_share:.0f} %"
                why = f"{why}, all of them would take more than {share} of the training"
            findings.append(RowsUnseen("", why))
    else:
        crossed = crossing(
            [frozenset(block.plates) for block in layout.blocks],
            [frozenset(frame.name for frame in stack) for stack in log_joint.plates.values()],
        )
        if crossed is not None:
            findings.append(_crossed(*crossed, layout))
        elif len(gaps) == len(tops) and any(not block.plates for block in layout.blocks):
            why = "several plates have latents, so that no rows can be integrated out one by one"
            findings.append(RowsUnseen("", why))
        bound, error_of = _plain_bound(problem, guide)
    if time.undone and time.whole.limit is not None:
        findings.append(TimeOver(time.whole.limit, tuple(time.undone)))
    params = ModelParams.of(log_joint.param_leaves(), log_joint.param_constraints)
    return PlateFit(
        guide,
        draws,
        tuple(gaps),
        bound,
        error_of,
        rows_se,
        replace(training, findings=tuple(findings)),
        params.constrained(),
        log_joint,
        seed,
        params,
    )


def drawn_rows(training: Training, log_joint: LogJoint, plate: str, total: int) -> int:
    """Return how many draws of rows of a plate all steps of a training took together."""
    _, batch = log_joint.subsampled.get(plate, (total, total))
    return len(training.losses) * training.settings.num_particles * batch


def _crossed(one: frozenset[str], other: frozenset[str], layout: PlateLayout) -> CrossedPlates:
    """Make the finding of plates that cross: of each the one that the other has not."""
    names = [min(a - b, key=lambda plate: layout.sizes.get(plate, 0)) for a, b in
             ((one, other), (other, one))]  # fmt: skip
    small, large = sorted(names, key=lambda plate: layout.sizes.get(plate, 0))
    return CrossedPlates(small, large)


def poor_rows(found: RowGaps) -> PoorRows:
    """Make the finding of what was seen of a plate's rows."""
    bad = int(found.bad().sum())
    return PoorRows(
        found.plate,
        bad,
        len(found.rows),
        found.total,
        float(found.gap.mean()),
        tuple(found.worst(min(bad, WORDS.named))),
        float(found.gap.max()),
    )


def _plain_bound(problem: Problem, guide: AutoPlateFlow) -> tuple[float, float]:
    """Estimate the bound from mini-batches: its value and standard error, in nats."""
    joint, found = problem.log_joint, []
    noise = problem.stream("bound")
    with torch.no_grad():
        for _ in range(64):
            rows = joint.draw_subsample(noise)
            density = guide.density(rows)
            z, log_q = density.push(density.sample_base(8, generator=noise))
            found.append((joint(z, rows) - log_q).double().mean())
    bounds = torch.stack(found)
    return float(bounds.mean()), float(bounds.std()) / len(bounds) ** 0.5
