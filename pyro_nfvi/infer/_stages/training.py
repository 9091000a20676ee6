"""Training: stochastic gradient ascent of the objective by one guide."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._optim.learning_rate import Schedule, default_rate
from pyro_nfvi._optim.recipe import CONVERGENCE
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.checkpoint import Checkpoint
from pyro_nfvi._train.density_selection import drop_if_changed
from pyro_nfvi._train.distributed_density import DistributedDensity
from pyro_nfvi._train.ending import stuck
from pyro_nfvi._train.engine_selection import choose
from pyro_nfvi._train.loop import Loop, LoopOptions
from pyro_nfvi._train.optimizer import make_optimizer
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi._train.task import Task
from pyro_nfvi.errors import DivergedError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._checks.improper import IMPROPER_ROWS, explain_divergence, with_fit
from pyro_nfvi.infer._findings import Level
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._make_guide import flow_name
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import CONTINUED_TRAINING, SCORING
from pyro_nfvi.infer._stages.best_state import keep_best_state
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training

_NO_STEP = StopReason("max_seconds", "There was no time for a step; the guide is where it starts.")
_INTERRUPTED = StopReason(
    "interrupted", "Interrupted in the Gaussian stage; the guide is where it starts."
)


@dataclass(frozen=True)
class TrainingPlan:
    """Steps and particles of one training.

    Attributes:
        max_steps: Most steps.
        number: Which training of the fit it is, from 1; each has a checkpoint of its own.
        warm: True where the guide's affine map starts at the Gaussian, and needs no large steps.
        particle_factor: Times as many particles; from 2 on, a bound counts as flat over twice the
            steps.
        train_params: False where the model's parameters stay where they are.
        param_unit: Smallest of the model parameters' own units, for their learning rate.
        interrupted: True where Ctrl-C came before there was anything to train.
        notes: Lines for the report about what came before.
    """

    max_steps: int
    number: int = 1
    warm: bool = True
    particle_factor: int = 1
    train_params: bool = True
    param_unit: float = 1.0
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def after(cls, start: WarmStart, max_steps: int) -> TrainingPlan:
        """Plan the first training after a warm start."""
        unit = None if start.params is None else start.params.unit
        return cls(
            max_steps,
            warm=start.gaussian is not None,
            param_unit=1.0 if unit is None else unit,
            interrupted=start.interrupted,
            notes=start.notes,
        )


def train(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow | PyroGuide,
    plan: TrainingPlan,
) -> Fit:
    """Train a guide, keep the better of its last and its best state, and score that.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide, set up; it is trained in place, as are the model's parameters.
        plan: Steps and particles.

    Raises:
        DivergedError: With the best fit until then.
    """
    with time.watch.part("set_up"):
        loop = _loop(problem, options, time, guide, plan)
    try:
        if plan.interrupted:
            reason = _INTERRUPTED
        elif time.affords(loop.task.num_particles, "a step of training"):
            with time.watch.part("training"):
                reason = loop.run()
        else:
            reason = _NO_STEP
    except DivergedError as error:
        saved = None
        if loop.state.recovery.skipped < loop.state.history.step:
            gave_up = StopReason("diverged", f"Gave up after {loop.state.history.step} steps.")
            left = loop.left_out()
            if left is not None and left.level is Level.FAULT:
                gave_up = stuck(left, loop.state.history.step)
            saved = _finished(problem, options, time, loop, gave_up)
        if not time.affords(IMPROPER_ROWS[problem.log_joint.how]):
            raise with_fit(error, saved) from error
        with time.watch.part("checks"):
            explained = explain_divergence(error, saved, time.whole)
        raise explained from error
    return _finished(problem, options, time, loop, reason)


def _loop(
    problem: Problem,
    options: Options,
    time: TimePlan,
    guide: AutoFlow | PyroGuide,
    plan: TrainingPlan,
) -> Loop:
    log_joint = problem.log_joint
    stop = options.stop and not log_joint.subsampled  # noise hides that a bound rises
    schedule = Schedule(plan.max_steps, early=stop)
    count = plan.particle_factor * options.num_particles
    own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
    outer = [p for name, p in own.items() if not name.startswith("flow.")]
    inner = [p for name, p in own.items() if name.startswith("flow.")]
    models = log_joint.parameters() if plan.train_params else []
    params = [*inner, *outer, *models]
    optimizer = make_optimizer(
        options.optim,
        inner,
        outer,
        default_rate(guide.latent.dim),
        cold=not plan.warm,
        models=models,
        unit=plan.param_unit,
    )
    # What compiled steps are compared with is the model itself; shared, it is all processes.
    shared = isinstance(log_joint.compiled, DistributedDensity)
    density = log_joint if shared else log_joint.eager
    step = EagerStep(guide, density, options.objective, params, len(models), optimizer)
    asked = "eager" if plan.interrupted else options.engine
    with options.progress.stage("choosing and building the engine", 1, unit="engine") as tick:
        chosen = choose(
            asked,
            step,
            count,
            schedule.max_steps,
            density=log_joint.compiled,
            budget=time.training,
            watch=time.watch,
        )
        tick(1)
    # A base of torch.distributions draws from torch's own state, which is the fit's for this time.
    drawn = guide.density().takes_generator
    generator = problem.stream("training", plan.number) if drawn else None
    window = min(plan.particle_factor, CONTINUED_TRAINING.window_factor) * CONVERGENCE.window
    loop = Loop(
        Task(guide, log_joint, options.objective, params, optimizer, count, generator),
        chosen,
        schedule,
        LoopOptions(
            stop=stop,
            callbacks=options.callbacks,
            what=f"training {flow_name(guide) or 'the Gaussian'}",
            # What changes in the first training, such as a temperature, has changed for good.
            first=0 if plan.number == 1 else options.objective.settled,
            average=bool(log_joint.subsampled),
            convergence=replace(CONVERGENCE, window=window),
        ),
        checkpoint=_checkpoint(problem, options, guide, plan.number),
        progress=options.progress,
        budget=time.training,
    )
    loop.state.history.notes += plan.notes
    return loop


def _checkpoint(
    problem: Problem, options: Options, guide: AutoFlow | PyroGuide, number: int
) -> Checkpoint | None:
    if options.checkpoint is None:
        return None
    identity = fingerprint(problem.log_joint.args, problem.log_joint.kwargs) | {
        "latent space": guide.latent.spec(),
        "guide": {name: list(p.shape) for name, p in guide.named_parameters()},
        "objective": options.objective.name,
        "num_particles": options.num_particles,
        "seed": options.seed,
    }
    path = str(options.checkpoint) + ("" if number == 1 else f".{number}")
    return Checkpoint(path, options.checkpoint_every, options.resume, identity)


def _finished(
    problem: Problem,
    options: Options,
    time: TimePlan,
    loop: Loop,
    reason: StopReason,
) -> Fit:
    """Keep the better of the last and the best state, score it, and wrap it up."""
    history, engine = loop.state.history, loop.engine
    notes = list(history.notes)
    left, others = loop.left_out(), loop.other_states()
    time.watch.count_steps(loop.steps_taken)
    if time.affords(SCORING.compared_rows):
        with time.watch.part("comparison"):
            drop_if_changed(problem.log_joint)
    with time.watch.part("scoring"):
        kept = not time.affords(SCORING.kept_draws) or keep_best_state(
            loop.task, others, problem.seed, time.whole
        )
    if not kept:
        which = "the average of some, or " if loop.options.average else ""
        notes.append(
            f"{which}the state of an earlier step was better than the last one and is kept"
        )
    if skipped := loop.state.recovery.skipped:
        words = f"{skipped} step{'s were' if skipped > 1 else ' was'}"
        notes.append(f"{words} skipped: gradients were not finite")
    if history.num_bad:
        notes.append(f"{history.num_bad} particles were left out: not finite")
    training = Training(
        torch.tensor(history.losses, dtype=torch.float64),
        reason,
        engine.name,
        engine.reason,
        settings_of(problem, options, loop.task.guide),
        tuple(notes),
        () if left is None else (left,),
    )
    return score_guide(problem, options, time, loop.task.guide, training)
