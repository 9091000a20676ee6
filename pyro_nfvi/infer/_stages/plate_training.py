"""Training of a guide of globals and rows, on mini-batches where plates subsample."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._optim.learning_rate import Schedule, default_rate
from pyro_nfvi._optim.recipe import CONVERGENCE
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._processes.exchange import Exchange, ProcessLost
from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.checkpoint import Checkpoint
from pyro_nfvi._train.distributed_density import DistributedDensity
from pyro_nfvi._train.engine_selection import Chosen, choose
from pyro_nfvi._train.loop import Loop, LoopOptions
from pyro_nfvi._train.minibatch_convergence import PairedPlateau
from pyro_nfvi._train.optimizer import make_optimizer
from pyro_nfvi._train.recipe import PAIRED, TRAINING
from pyro_nfvi._train.sharded_runner import ShardedFollower, ShardedRunner, live_tensors
from pyro_nfvi._train.sharded_steps import ShardedSteps
from pyro_nfvi._train.step import EagerRunner, EagerStep
from pyro_nfvi._train.task import Task
from pyro_nfvi.errors import DivergedError, OptionError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import PLATES
from pyro_nfvi.infer._settings import Settings
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training


def check_plate_options(options: Options) -> None:
    """Refuse options that a fit of rows cannot have.

    Raises:
        OptionError: Tells what can.
    """
    if not options.objective.additive:
        raise OptionError(
            f"The objective {options.objective.name} is no sum over rows: its bound is of all rows "
            "together, and a mini-batch of them does not estimate it. Latents in plates train with "
            "objective='path' or 'total'."
        )


def num_particles(options: Options, dim: int) -> int:
    """Return how many draws a step takes: as many as asked for, fewer of a long vector.

    A step's cost grows with particles times rows, and with so many rows one particle has many
    draws of what rows share.
    """
    most = max(PLATES.least_particles, PLATES.step_numbers // max(1, dim))
    return min(options.num_particles, most)


def num_steps(options: Options, log_joint: LogJoint) -> int:
    """Return the most steps: ``max_steps``, or enough for some passes over the rows."""
    if not options.more_steps:
        return options.max_steps
    batches = max((size / count for size, count in log_joint.subsampled.values()), default=1.0)
    wanted = int(PLATES.passes * batches)
    return max(options.max_steps, min(PLATES.most_steps, wanted))


def bounds_on(task: Task, generator: torch.Generator, count: int, particles: int) -> Tensor:
    """Score some mini-batches with new noise: ``(count,)`` bounds in nats, without gradient."""
    joint, found = task.log_joint, []
    with torch.no_grad():
        for _ in range(count):
            rows = joint.draw_subsample(generator)
            density = task.guide.density_at(rows)
            z, log_q = density.push(density.sample_base(particles, generator=generator))
            log_w = (joint(z, rows) - log_q).double()
            found.append(log_w[torch.isfinite(log_w)].mean())
    return torch.stack(found).cpu()


def train_rows(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoPlateFlow,
    reason: str,
    notes: Sequence[str] = (),
) -> tuple[Training, DivergedError | None]:
    """Train a guide of rows in place, and keep the best of its last states.

    Args:
        problem: The posterior, at the layout of a mini-batch.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide, set up.
        reason: Reason for the guide, for the report.
        notes: Lines for the report about what came before.

    Returns:
        The record, and the error of a training whose gradients were not finite again and again.
    """
    with time.watch.part("set_up"):
        loop, measure = _loop(problem, options, time, guide)
    loop.state.history.notes += notes
    failed: DivergedError | None = None
    try:
        with time.watch.part("training"), _ended(loop):
            why = loop.run()
    except DivergedError as error:
        failed = error
        why = StopReason("diverged", f"Gave up after {loop.state.history.step} steps.")
    return finished(problem, options, time, loop, measure, why, reason), failed


def _loop(
    problem: Problem, options: Options, time: TimePlan, guide: AutoPlateFlow
) -> tuple[Loop, Callable[[int], Tensor]]:
    log_joint = problem.log_joint
    count = num_particles(options, log_joint.latent.dim)
    schedule = Schedule(num_steps(options, log_joint), early=options.stop)
    step = _step(options, guide, log_joint)
    params, optimizer = step.params, step.optimizer
    if not (isinstance(log_joint.model, BatchModel) and log_joint.model.changing):
        guide.check_encoders()
    chosen = _shared(options, step, count, schedule.max_steps, log_joint)
    if chosen is None:
        chosen = choose(
            options.engine,
            step,
            count,
            schedule.max_steps,
            density=log_joint.compiled,
            budget=time.training,
            watch=time.watch,
        )
        if chosen.backend == "eager" and log_joint.compiled is not None:
            by_code = copy.copy(step)
            by_code.log_joint = log_joint
            reason = f"{chosen.reason}; the model is compiled"
            chosen = replace(chosen, runner=EagerRunner(by_code), reason=reason)
    generator = problem.stream("training", 1)
    task = Task(guide, log_joint, options.objective, params, optimizer, count, generator)
    total = sum(guide.layout.sizes.values())
    tolerance = max(PAIRED.tolerance, PAIRED.row_tolerance * total)

    def measure(look: int) -> Tensor:
        return bounds_on(task, problem.stream("look", look), PAIRED.batches, count)

    paired = None
    if log_joint.subsampled:
        passes = min(PAIRED.span * batch / size for size, batch in log_joint.subsampled.values())
        paired = PairedPlateau(measure, tolerance, passes)
    loop = Loop(
        task,
        chosen,
        schedule,
        LoopOptions(
            stop=options.stop,
            callbacks=options.callbacks,
            what="training globals and rows",
            average=bool(log_joint.subsampled),
            convergence=replace(CONVERGENCE, tolerance=tolerance),
            paired=paired,
        ),
        checkpoint=_checkpoint(problem, options, guide),
        progress=options.progress,
        budget=time.training,
    )
    return loop, measure


def _step(options: Options, guide: AutoPlateFlow, log_joint: LogJoint) -> EagerStep:
    """Make the step by the model itself, with the optimiser: the same in all processes."""
    tables = {id(p) for p in guide.tables.tables()}
    own = [p for p in guide.parameters() if p.requires_grad]
    inner = [p for p in own if id(p) not in tables]
    rows = [p for p in own if id(p) in tables]
    models = log_joint.parameters()
    optimizer = _optimizer(options, guide, log_joint, inner, rows, models)
    params = [*inner, *rows, *models]
    # What compiled steps are compared with is the model itself.
    return EagerStep(guide, log_joint.eager, options.objective, params, len(models), optimizer)


# ------------------------------------------------------------------------- several processes


def _shared(
    options: Options, step: EagerStep, count: int, max_steps: int, log_joint: LogJoint
) -> Chosen | None:
    """Let all processes take the steps together; None in one process, and where they cannot.

    Raises:
        OptionError: A compiled step was asked for and cannot be captured.
    """
    density = log_joint.compiled
    if not isinstance(density, DistributedDensity):
        return None
    # A random trace is drawn for all particles of a call.
    if any(getattr(type(part), "mode_dependent", False) for part in step.guide.modules()):
        return None
    service, own = density.service, copy.copy(step)
    own.log_joint = density.own()

    def make(_: Any) -> ShardedSteps:
        return _sharded(options, own, count, max_steps, service.exchange)

    begin = (step.guide.state_dict(), count, max_steps)
    live = live_tensors(step.params, step.optimizer)
    runner = ShardedRunner(make, begin, service, live)
    captured = runner.steps.captured
    if options.engine == "compiled" and not captured:
        runner.end()
        raise OptionError(
            f"engine='compiled' cannot run this fit: {runner.steps.reason}. engine='auto' takes "
            "what can."
        )
    reason = f"{density.size} processes take each step together; {runner.steps.reason}"
    return Chosen("graph" if captured else "eager", reason, runner, asked=True)


def follow_rows(
    problem: Problem, options: Options, guide: AutoPlateFlow, exchange: Exchange
) -> ShardedFollower:
    """Return the part in a training of a process that does not lead.

    Args:
        problem: The posterior, as it is set up here.
        options: Options of the fit.
        guide: The guide, set up.
        exchange: The processes.
    """

    def make(begin: Any) -> ShardedSteps:
        state, count, max_steps = begin
        guide.load_state_dict(state)
        step = _step(options, guide, problem.log_joint)
        step.log_joint = problem.log_joint
        return _sharded(options, step, count, max_steps, exchange)

    return ShardedFollower(make, exchange)


def _sharded(
    options: Options, step: EagerStep, count: int, max_steps: int, exchange: Exchange
) -> ShardedSteps:
    return ShardedSteps(step, count, exchange, engine=options.engine, max_steps=max_steps)


@contextmanager
def _ended(loop: Loop) -> Iterator[None]:
    """Let other processes forget a training when it is over."""
    try:
        yield
    except ProcessLost:
        raise
    except BaseException:
        _end(loop)
        raise
    _end(loop)


def _end(loop: Loop) -> None:
    runner = loop.engine.runner
    if isinstance(runner, ShardedRunner):
        runner.end()


def _optimizer(
    options: Options,
    guide: AutoPlateFlow,
    log_joint: LogJoint,
    inner: list[Tensor],
    rows: list[Tensor],
    models: list[Tensor],
) -> torch.optim.Optimizer:
    """Build the optimiser: Adam by rows, unless the user brought another."""
    optim = options.optim
    guide.sparse_gradients = False
    if not (optim is None or isinstance(optim, (int, float))):
        return make_optimizer(optim, inner, rows, 1.0, models=models)
    widths = sum(block.width for block in guide.layout.blocks)
    rate = default_rate(widths) if optim is None else float(optim)
    groups = [
        {"params": [*inner, *models], "lr": rate},
        {"params": rows, "lr": PLATES.table_rate * rate},
    ]
    guide.sparse_gradients = bool(log_joint.subsampled)
    return RowwiseAdam([group for group in groups if group["params"]], fused=True)


def _checkpoint(problem: Problem, options: Options, guide: AutoPlateFlow) -> Checkpoint | None:
    if options.checkpoint is None:
        return None
    identity = fingerprint(problem.log_joint.args, problem.log_joint.kwargs) | {
        "latent space": guide.latent.spec(),
        "guide": {name: list(p.shape) for name, p in guide.named_parameters()},
        "objective": options.objective.name,
        "num_particles": options.num_particles,
        "seed": options.seed,
    }
    return Checkpoint(options.checkpoint, options.checkpoint_every, options.resume, identity)


def finished(
    problem: Problem,
    options: Options,
    time: TimePlan,
    loop: Loop,
    measure: Callable[[int], Tensor],
    why: StopReason,
    reason: str,
) -> Training:
    """Keep the better of the last state and others, and wrap the record up."""
    history = loop.state.history
    notes = list(history.notes)
    left, others = loop.left_out(), loop.other_states()
    time.watch.count_steps(loop.steps_taken)
    with time.watch.part("scoring"):
        kept = time.whole.over() or _keep_best(loop.task, others, measure)
    if not kept:
        notes.append(
            "an average of states, or an earlier one, was better than the last; it is kept"
        )
    if skipped := loop.state.recovery.skipped:
        words = f"{skipped} step{'s were' if skipped > 1 else ' was'}"
        notes.append(f"{words} skipped: gradients were not finite")
    if history.num_bad:
        notes.append(f"{history.num_bad} particles were left out: not finite")
    most = loop.state.schedule.max_steps
    settings = _settings(problem, options, loop.task.guide, loop.task.num_particles, most)
    return Training(
        torch.tensor(history.losses, dtype=torch.float64),
        why,
        loop.engine.name,
        loop.engine.reason,
        settings,
        (f"guide AutoPlateFlow: {reason}", *notes),
        () if left is None else (left,),
    )


def untrained(
    problem: Problem,
    options: Options,
    guide: AutoPlateFlow,
    reason: str,
    notes: Sequence[str] = (),
) -> Training:
    """Make the record of a guide that stays at the Gaussian from which it starts."""
    why = StopReason("converged", "The Gaussian of globals and rows is exact enough as it is.")
    return Training(
        torch.zeros(0, dtype=torch.float64),
        why,
        "eager",
        "nothing was trained",
        _settings(problem, options, guide, options.num_particles, options.max_steps),
        (f"guide AutoPlateFlow: {reason}", *notes),
    )


def _settings(
    problem: Problem, options: Options, guide: AutoPlateFlow, particles: int, most: int
) -> Settings:
    density = problem.density
    return Settings(
        flow=reason_flow(guide),
        objective=options.objective.name,
        num_particles=particles,
        max_steps=most,
        seed=problem.seed,
        particles_by=problem.log_joint.how,
        particles_why=problem.log_joint.why,
        density_by=density.backend,
        density_why=density.reason,
    )


def reason_flow(guide: AutoPlateFlow) -> str:
    """Return the formulas of a guide's flows, for reports."""
    flow = guide._recipe.flow
    local = guide._local if isinstance(guide._local, str) else "local flow"
    return f"{flow if isinstance(flow, str) else type(flow).__name__}; {local}"


def _keep_best(task: Task, others: Sequence[Snapshot], measure: Callable[[int], Tensor]) -> bool:
    """Leave the best of the last state and some others in place; True if it is the last."""
    if not others:
        return True
    last = Snapshot.take(0, task.params, task.optimizer)
    look = -1  # batches that no test of the training saw
    kept, now = last, measure(look)
    for other in others:
        other.put_values(task.params)
        found = measure(look)
        rise = (found - now)[torch.isfinite(found - now)]
        if len(rise) < 2:
            continue
        if rise.mean() > TRAINING.compared_errors * rise.std() / math.sqrt(len(rise)):
            kept, now = other, found
    kept.put_values(task.params)
    return kept is last
