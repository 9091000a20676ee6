"""The training loop: blocks of steps, and between them recovery, convergence and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._optim.learning_rate import GroupRates, Schedule
from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe
from pyro_nfvi._optim.recovery import Action
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.checkpoint import Checkpoint
from pyro_nfvi._train.convergence import ConvergenceTest
from pyro_nfvi._train.ending import Ending, broken_off, gave_up, reason_of
from pyro_nfvi._train.engine_fallback import GuardedStepper
from pyro_nfvi._train.engine_selection import Chosen
from pyro_nfvi._train.left_out_particles import LeftOut, left_out
from pyro_nfvi._train.minibatch_convergence import PairedPlateau
from pyro_nfvi._train.noise import Noise
from pyro_nfvi._train.nonfinite import locate_nonfinite
from pyro_nfvi._train.progress import SILENT, Bar, Progress, StepInfo
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.resume import restored_state, saved_state
from pyro_nfvi._train.saved_states import SavedStates
from pyro_nfvi._train.stepper import Stepper
from pyro_nfvi._train.task import Task
from pyro_nfvi._train.training_state import TrainingState
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DivergedError, FileError


@dataclass(frozen=True)
class LoopOptions:
    """Options of a training loop.

    Attributes:
        stop: End the constant phase where the bound is flat.
        callbacks: Called with a :class:`StepInfo` after each step; True stops the fit.
        what: What is trained, for the bar.
        first: What the objective takes for the number of the first step.
        average: Average the states of the decay.
        convergence: Numbers of the test for a flat bound.
        paired: The test on common mini-batches, in place of that of the losses; or None.
    """

    stop: bool = True
    callbacks: Sequence[Callable[[StepInfo], Any]] = ()
    what: str = "training"
    first: int = 0
    average: bool = False
    convergence: ConvergenceRecipe = CONVERGENCE
    paired: PairedPlateau | None = None


class Loop:
    """Run steps until the schedule is over, and keep the best state.

    The loop is the order of things alone: a :class:`Stepper` takes the steps, a
    :class:`GuardedStepper` gives an engine up, a :class:`Recovery` answers steps that are not
    finite, a :class:`ConvergenceTest` looks at the bound, :class:`SavedStates` are there to go back
    to, and what a file holds of it all is :func:`saved_state` its :class:`TrainingState`.

    Args:
        task: What is trained.
        engine: What takes the steps.
        schedule: Rate and length.
        options: The options.
        checkpoint: Where to write the state, or None.
        progress: Shows a bar.
        budget: Time for the steps, which begins when the call did; one step is taken in any case.
    """

    def __init__(
        self,
        task: Task,
        engine: Chosen,
        schedule: Schedule,
        options: LoopOptions,
        *,
        checkpoint: Checkpoint | None = None,
        progress: Progress = SILENT,
        budget: Budget = UNLIMITED,
    ) -> None:
        self.task, self.options, self.state = task, options, TrainingState(schedule)
        self._checkpoint, self._progress, self._budget = checkpoint, progress, budget
        self._stepper = Stepper(engine, task.params, task.optimizer)
        self._states = SavedStates(task, self._stepper)
        self._rates = GroupRates(task.optimizer)
        rows = {name: torch.arange(count) for name, (_, count) in task.log_joint.subsampled.items()}
        self._noise = Noise(
            task.guide.density_at(rows), task.log_joint, task.num_particles, task.generator
        )
        self._convergence = ConvergenceTest.of(
            stop=options.stop,
            average=options.average,
            changing=task.objective.settled - options.first,
            recipe=options.convergence,
            paired=options.paired,
        )
        self._pace = math.inf  # seconds that a step takes
        self._resumed = 0  # steps of earlier calls

    @property
    def engine(self) -> Chosen:
        """The engine that takes the steps now."""
        return self._stepper.engine

    @property
    def steps_taken(self) -> int:
        """Steps of this call, without those before a checkpoint that it went on from."""
        return self.state.history.step - self._resumed

    def other_states(self) -> list[Snapshot]:
        """Return states that may be better than the last one, after :meth:`run`."""
        return self._states.others(self.state.history.step)

    def run(self) -> StopReason:
        """Train; return why it stopped.

        Raises:
            DivergedError: Gradients were not finite again and again.
            FileError: The checkpoint is of another fit, or damaged.
        """
        self._resume()
        history, schedule = self.state.history, self.state.schedule
        self._resumed = history.step
        # What an earlier call took of a fit that is resumed is no part of this one's time.
        if self._budget.limit is not None:
            least = max(TRAINING.least_seconds, self._budget.left())
            schedule.max_seconds = history.seconds + least
        begin = self._budget.clock() - history.seconds
        engine = GuardedStepper(self._stepper, self._states, history)
        self._stepper.push()
        word = ""
        with self._progress.bar(self.options.what, schedule.max_steps, history.step) as bar:
            try:
                while not word and not self.state.finished:
                    word = self._block(engine, bar, begin)
            except KeyboardInterrupt:
                word = "interrupted"
            finally:
                self._states.settle()
        self._write_checkpoint()
        return broken_off(word, history.step) if word else reason_of(self._ending())

    def left_out(self) -> LeftOut | None:
        """Return the share of the particles that the last steps left out, and why."""
        if not any(self.state.history.left_out):
            return None
        eps, streams = self._inputs(1)
        task = self.task
        one = {name: value[0] for name, value in streams.items()}
        return left_out(task.guide, task.log_joint, self.state.history.left_out, eps[0], one)

    # ------------------------------------------------------------------------------- steps

    def _block(self, engine: GuardedStepper, bar: Bar, begin: float) -> str:
        """Take some steps; return a word to stop, or an empty string."""
        state, often = self.state, bool(self.options.callbacks)
        history, step = state.history, state.history.step
        eps, streams = self._inputs(self._length())
        if engine.comparison_due(self.options.convergence.block, often=often):
            engine.compare(eps[0], _at(streams, 0), len(self._rates))
        factors = state.schedule.block(step, len(eps), history.seconds)
        rates = self._rates.block(factors, state.recovery.rate, step)
        start = self._budget.clock()
        result = engine.run(eps, streams, rates)
        count = len(result.bounds)
        self._noise.use(count)
        now = self._budget.clock()
        self._pace = (now - start) / count
        history.add(result, now - begin)
        for group, rate in zip(self.task.optimizer.param_groups, rates[count - 1].tolist()):
            group["lr"] = rate
        ok = bool(result.ok[-1])
        self._recover(count, eps[count - 1], _at(streams, count - 1), ok=ok)
        self._look_at_bound()
        bar.update(history.step, history.losses[-count:], state.schedule)
        if self._checkpoint is not None and self._checkpoint.due(history.step):
            self._write_checkpoint()
        if self._call_back(ok=ok):
            return "callback"
        return "interrupted" if result.interrupted else ""

    def _inputs(self, count: int) -> tuple[Tensor, TensorDict]:
        """Return noise and other inputs of the next steps, each ``(count, ...)``."""
        eps, streams = self._noise.look(count)
        first = self.options.first + self.state.history.step
        numbers = self.task.objective.stream(first, len(eps))
        return eps, streams | {name: value.to(eps.device) for name, value in numbers.items()}

    def _length(self) -> int:
        """Return the number of steps that can be taken at once."""
        if self.options.callbacks:
            return 1
        step, schedule = self.state.history.step, self.state.schedule
        limit = TRAINING.longest_share * (schedule.max_seconds or math.inf)
        ends = [
            self._noise.left,
            schedule.ahead(step),
            self._convergence.ahead(step),
            # Ctrl-C and the clock are read between blocks.
            int(min(TRAINING.longest_block, limit) / max(1e-9, self._pace)),
        ]
        if self._checkpoint is not None:
            ends.append(self._checkpoint.every - step % self._checkpoint.every)
        return max(1, min(ends))

    def _call_back(self, *, ok: bool) -> bool:
        """Tell the callbacks of a step; return True if one of them ends the training."""
        if not self.options.callbacks:
            return False
        self._stepper.pull()
        history, rate = self.state.history, self.task.optimizer.param_groups[0]["lr"]
        info = StepInfo(
            history.step, history.losses[-1], rate, history.seconds, not ok, self.task.guide
        )
        answers = [callback(info) for callback in self.options.callbacks]
        self._stepper.push()  # a callback may have changed a parameter
        return any(answer is True for answer in answers)

    # --------------------------------------------------------------- recovery, convergence

    def _recover(self, count: int, eps: Tensor, streams: TensorDict, *, ok: bool) -> None:
        """Do what the recovery policy says of the steps just taken.

        Args:
            count: Steps just taken, of which only the last may be a bad one.
            eps: Noise of the last.
            streams: Its other inputs.
            ok: It was a good one.

        Raises:
            DivergedError: The policy gives up.
        """
        step, recovery = self.state.history.step, self.state.recovery
        action = recovery.after(count, ok=ok)
        if action is Action.SNAPSHOT:
            self._states.keep_good(step)
        if action not in (Action.RESTORE, Action.GIVE_UP):
            return
        self._stepper.pull()
        where = locate_nonfinite(self.task.guide, self.task.log_joint, eps, streams)
        back = self._states.back_to_good()
        if action is Action.GIVE_UP:
            raise DivergedError(gave_up(step, where, len(recovery.restores)))
        recovery.restored(step)
        self.state.history.note_return(where, back)

    def _look_at_bound(self) -> None:
        """Keep the present state, go back, or let the rate go down, as the bound says."""
        if self.options.paired is not None:
            self._stepper.pull()  # it scores the present state
        state, outcome = self.state, self._convergence.look(self.state)
        step = state.history.step
        if outcome.average:
            self._states.average()
        if outcome.best:
            self._states.keep_best(step)
        if outcome.fall is not None:
            back = self._states.back_to_best()
            state.recovery.slow_down()
            why = f"the bound had fallen by {outcome.fall:.2g} nats"
            state.history.note_return(why, back)
        if outcome.flat:
            state.history.converged = True
            state.schedule.begin_decay(step, state.history.seconds)

    # ------------------------------------------------------------------- the end, and files

    def _ending(self) -> Ending:
        history, schedule = self.state.history, self.state.schedule
        return Ending(
            steps=history.step,
            max_steps=schedule.max_steps,
            seconds=history.seconds,
            limit=schedule.max_seconds,
            whole_limit=self._budget.limit,
            converged=history.converged,
            decay_step=None if schedule.decay is None else schedule.decay[0],
            rise=self._convergence.rise,
            early=self.options.stop,
            forecast=self._convergence.forecast(self.state),
            left_out=self.left_out(),
            recipe=self.options.convergence,
            paired=self.options.paired is not None,
        )

    def _write_checkpoint(self) -> None:
        if self._checkpoint is None:
            return
        self._states.settle()
        snapshots = self._states.snapshots(self.state.history.step)
        try:
            self._checkpoint.save(saved_state(self.state, self._noise.state(), snapshots))
        except FileError as error:  # the fit itself is worth more than its checkpoint
            warn(f"Checkpoint not written: {error}")

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one to go on from."""
        if self._checkpoint is None:
            return
        saved = self._checkpoint.load(self.task.params)
        if saved is None:
            return
        with self._checkpoint.reading():
            self.state = restored_state(saved, self.state)
            self._states.restore(saved.snapshots)
            # Files of earlier versions hold the state after the last step's own numbers.
            self._noise.restore(saved.rng, saved.counts.get("noise_used", 0))


def _at(streams: TensorDict, place: int) -> TensorDict:
    """Return the inputs of one step of a block."""
    return {name: values[place] for name, values in streams.items()}
