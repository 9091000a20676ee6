"""The training loop: blocks of steps, and between them recovery, convergence and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._optim.early_stopping import Plateau
from pyro_nfvi._optim.iterate_averaging import averaged
from pyro_nfvi._optim.learning_curve import forecast
from pyro_nfvi._optim.learning_rate import GroupRates, Schedule
from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe
from pyro_nfvi._optim.recovery import Action, Recovery
from pyro_nfvi._optim.rollback import BestBlock
from pyro_nfvi._optim.snapshot import Snapshot, check_optimizer
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.checkpoint import Checkpoint, LoopState
from pyro_nfvi._train.ending import Ending, broken_off, reason_of
from pyro_nfvi._train.engine_selection import Chosen
from pyro_nfvi._train.left_out_particles import LeftOut, left_out
from pyro_nfvi._train.noise import Noise
from pyro_nfvi._train.nonfinite import locate_nonfinite
from pyro_nfvi._train.progress import SILENT, Bar, Progress, StepInfo
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.stepper import EngineFailed, SavedStates, Stepper
from pyro_nfvi._train.task import Task
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DivergedError, EngineWarning, FileError


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
    """

    stop: bool = True
    callbacks: Sequence[Callable[[StepInfo], Any]] = ()
    what: str = "training"
    first: int = 0
    average: bool = False
    convergence: ConvergenceRecipe = CONVERGENCE


@dataclass
class History:
    """Record of a training.

    Attributes:
        losses: Negative bound of every step, in nats.
        seconds: Time taken.
        num_bad: Particles that were left out.
        left_out: Particles that each of the last steps left out.
        converged: The bound was flat.
        notes: Lines for the report.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_bad: int = 0
    left_out: list[int] = field(default_factory=list)
    converged: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)


class Loop:
    """Run steps until the schedule is over, and keep the best state.

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
        self.task, self.schedule, self.options = task, schedule, options
        self.checkpoint, self.progress, self.budget = checkpoint, progress, budget
        self.history = History()
        self.recovery, self.best_block = Recovery(), BestBlock()
        self.plateau = Plateau(options.convergence)
        self._stepper = Stepper(engine, task.params, task.optimizer)
        self._states = SavedStates(Snapshot.take(0, task.params, task.optimizer))
        self._rates = GroupRates(task.optimizer)
        self._noise = Noise(
            task.guide.density(), task.log_joint, task.num_particles, task.generator
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
        return self.history.step - self._resumed

    def other_states(self) -> list[Snapshot]:
        """Return states that may be better than the last one, after :meth:`run`."""
        best, mean = self._states.best, self._states.mean
        assert best is None or isinstance(best, Snapshot)
        return [
            *([] if best is None or best.step == self.history.step else [best]),
            *([] if mean is None else [mean]),
        ]

    def run(self) -> StopReason:
        """Train; return why it stopped.

        Raises:
            DivergedError: Gradients were not finite again and again.
            FileError: The checkpoint is of another fit, or damaged.
        """
        self._resume()
        self._resumed = self.history.step
        history, schedule = self.history, self.schedule
        # What an earlier call took of a fit that is resumed is no part of this one's time.
        if self.budget.limit is not None:
            least = max(TRAINING.least_seconds, self.budget.left())
            schedule.max_seconds = history.seconds + least
        begin = self.budget.clock() - history.seconds
        self._stepper.push()
        word = ""
        with self.progress.bar(self.options.what, schedule.max_steps, history.step) as bar:
            try:
                while not word and not schedule.finished(history.step, history.seconds):
                    word = self._block(bar, begin)
            except KeyboardInterrupt:
                word = "interrupted"
            finally:
                self._settle()
        self._write_checkpoint()
        return broken_off(word, history.step) if word else reason_of(self._ending())

    def left_out(self) -> LeftOut | None:
        """Return the share of the particles that the last steps left out, and why."""
        if not any(self.history.left_out):
            return None
        eps, streams = self._inputs(1)
        task = self.task
        one = {name: value[0] for name, value in streams.items()}
        return left_out(task.guide, task.log_joint, self.history.left_out, eps[0], one)

    # ------------------------------------------------------------------------------- steps

    def _block(self, bar: Bar, begin: float) -> str:
        """Take some steps; return a word to stop, or an empty string."""
        history, schedule, optimizer = self.history, self.schedule, self.task.optimizer
        eps, streams = self._inputs(self._length())
        if self._comparison_due():
            self._compare(eps[0], {name: index[0] for name, index in streams.items()})
        factors = schedule.block(history.step, len(eps), history.seconds)
        rates = self._rates.block([self.recovery.rate * one for one in factors], history.step)
        start = self.budget.clock()
        try:
            result = self._stepper.run(eps, streams, rates)
        except EngineFailed as failure:
            self._fall_back_from(failure)
            result = self._stepper.run(eps, streams, rates)
        count = len(result.bounds)
        self._noise.use(count)
        losses, bad = (-result.bounds).tolist(), result.num_bad.tolist()
        history.losses += losses
        history.num_bad += sum(bad)
        history.left_out = [*history.left_out, *bad][-TRAINING.last_steps :]
        now = self.budget.clock()
        history.seconds, self._pace = now - begin, (now - start) / count
        for group, rate in zip(optimizer.param_groups, rates[count - 1].tolist()):
            group["lr"] = rate
        ok = bool(result.ok[-1])
        last = {name: x[count - 1] for name, x in streams.items()}
        self._recover(count, eps[count - 1], last, ok=ok)
        self._test_convergence()
        bar.update(history.step, losses, schedule)
        if self.checkpoint is not None and self.checkpoint.due(history.step):
            self._write_checkpoint()
        if not self.options.callbacks:
            return "interrupted" if result.interrupted else ""
        self._stepper.pull()
        rate = optimizer.param_groups[0]["lr"]
        info = StepInfo(history.step, losses[-1], rate, history.seconds, not ok, self.task.guide)
        answers = [callback(info) for callback in self.options.callbacks]
        self._stepper.push()  # a callback may have changed a parameter
        return "callback" if any(answer is True for answer in answers) else ""

    def _inputs(self, count: int) -> tuple[Tensor, TensorDict]:
        """Return noise and other inputs of the next steps, each ``(count, ...)``."""
        eps, streams = self._noise.look(count)
        first = self.options.first + self.history.step
        numbers = self.task.objective.stream(first, len(eps))
        return eps, streams | {name: value.to(eps.device) for name, value in numbers.items()}

    def _length(self) -> int:
        """Return the number of steps that can be taken at once."""
        if self.options.callbacks:
            return 1
        step = self.history.step
        span = self.plateau.span(step + 1, often=self.options.average)
        limit = TRAINING.longest_share * (self.schedule.max_seconds or math.inf)
        ends = [
            self._noise.left,
            self.schedule.ahead(step),
            span - step % span,
            # Ctrl-C and the clock are read between blocks.
            int(min(TRAINING.longest_block, limit) / max(1e-9, self._pace)),
        ]
        if self.checkpoint is not None:
            ends.append(self.checkpoint.every - step % self.checkpoint.every)
        return max(1, min(ends))

    # ------------------------------------------------------------------------- the engine

    def _comparison_due(self) -> bool:
        """Tell whether to compare with the eager step now: rarely, without callbacks."""
        block = self.options.convergence.block
        if not self._stepper.comparable or self.history.step % block:
            return False
        blocks = self.history.step // block
        return blocks > 0 and (bool(self.options.callbacks) or blocks in TRAINING.comparisons)

    def _compare(self, eps: Tensor, streams: TensorDict) -> None:
        """Go on with the eager step if the model is not the one that was captured."""
        try:
            problem = self._stepper.changed(eps, streams, len(self._rates))
        except EngineFailed as failure:
            self._fall_back_from(failure)
            return
        if problem is None:
            return
        warn(
            f"The compiled step ran {self.history.step} times and is given up: "
            f"{problem}. If the model is meant to change, use engine='eager'.",
            EngineWarning,
        )
        self._fall_back(problem)

    def _fall_back_from(self, failure: EngineFailed) -> None:
        """Go on with the eager step from the last good state: that of the engine is not known."""
        self._stepper.put(self._states.good)
        self._fall_back(str(failure))

    def _fall_back(self, problem: str) -> None:
        step = self.history.step
        self._settle()
        self._stepper.fall_back(step, problem)
        self.history.notes.append(f"step {step}: {problem}; went on with engine 'eager'")

    def _settle(self) -> None:
        self._states = self._stepper.settle(self._states)

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
        step, task = self.history.step, self.task
        action = self.recovery.after(count, ok=ok)
        if action is Action.SNAPSHOT:
            self._states = dataclasses.replace(self._states, good=self._stepper.take(step))
        if action not in (Action.RESTORE, Action.GIVE_UP):
            return
        self._stepper.pull()
        where = locate_nonfinite(task.guide, task.log_joint, eps, streams)
        self._stepper.put(self._states.good)
        if action is Action.GIVE_UP:
            raise DivergedError(
                f"The fit gave up at step {step}: {where}. It went back to an earlier state "
                f"{len(self.recovery.restores)} times, each time at half the learning rate. Look "
                "at that site's distribution (a scale that can reach 0, a log of a small number); "
                "use float64; or start closer: AutoFlow(model, init_loc_fn=..., init_scale=0.01), "
                "NFVI(..., optim=1e-3). The best fit until then is this error's .fit."
            )
        self.recovery.restored(step)
        self._went_back(where, self._states.good.step)

    def _went_back(self, why: str, to: int) -> None:
        step = self.history.step
        self.history.notes.append(
            f"step {step}: {why}; went back to step {to} and halved the learning rate"
        )
        self._states = dataclasses.replace(self._states, mean=None)  # another path

    def _test_convergence(self) -> None:
        """Test now and then if the last steps were the best, and if the bound is flat."""
        history, recipe = self.history, self.options.convergence
        step = history.step
        span = self.plateau.span(step, often=self.options.average)
        if step % span and step != self.schedule.last:
            return
        if self.options.average and self.schedule.decay is not None:
            self._stepper.pull()
            mean = averaged(self._states.mean, self.task.params)
            self._states = dataclasses.replace(self._states, mean=mean)
        # A bound that rose because the objective changed says nothing of what more steps bring.
        judged = 2 * recipe.span
        changing = self.task.objective.settled - self.options.first
        settled = changing <= 0 or step >= changing + judged
        # What is left at the end may be a few steps: too few to judge a state by.
        self._judge(max(recipe.block, step % span or span), settled=settled)
        # Nor does one that fell, or the way from there back up.
        back = max(self.best_block.retreats, default=-judged)
        if not settled or self.best_block.low_steps or step < back + judged:
            return
        flat = self.options.stop and self.schedule.decay is None
        if flat and self.plateau.flat(history.losses):
            history.converged = True
            self.schedule.begin_decay(step, history.seconds)

    def _judge(self, steps: int, *, settled: bool) -> None:
        """Keep the present state if its bound is the best; go back where the bound fell for good.

        Args:
            steps: Steps since the last test.
            settled: The objective no longer changes.
        """
        step, states = self.history.step, self._states
        recent = [x for x in self.history.losses[-steps:] if math.isfinite(x)]
        if 2 * len(recent) < steps:
            return
        if self.best_block.improve(recent):
            # The same state may just have been kept to go back to.
            best = states.good if states.good.step == step else self._stepper.take(step)
            self._states = dataclasses.replace(states, best=best)
            return
        fall = self.best_block.fallen(-statistics.median(recent), steps) if settled else None
        if fall is None:
            return
        assert states.best is not None
        self._stepper.put(states.best)
        self._states = dataclasses.replace(states, good=states.best)
        self.recovery.slow_down()
        self.best_block.retreated(step)
        self._went_back(f"the bound had fallen by {fall:.2g} nats", states.best.step)

    # ------------------------------------------------------------------- the end, and files

    def _ending(self) -> Ending:
        history, schedule = self.history, self.schedule
        ahead = None
        if schedule.decay is not None:
            # Before the target is cold, the bound rises for another reason; after a retreat it is
            # as if the fit began there.
            changing = self.task.objective.settled - self.options.first
            begin = max(0, changing, *self.best_block.retreats)
            losses = history.losses[begin : schedule.decay[0]]
            ahead = forecast(losses, self.options.convergence)
        return Ending(
            steps=history.step,
            max_steps=schedule.max_steps,
            seconds=history.seconds,
            limit=schedule.max_seconds,
            whole_limit=self.budget.limit,
            converged=history.converged,
            decay_step=None if schedule.decay is None else schedule.decay[0],
            rise=self.plateau.rise,
            early=self.options.stop,
            forecast=ahead,
            left_out=self.left_out(),
            recipe=self.options.convergence,
        )

    def _write_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        self._settle()
        try:
            self.checkpoint.save(self._state())
        except FileError as error:  # the fit itself is worth more than its checkpoint
            warn(f"Checkpoint not written: {error}")

    def _numbers(self) -> dict[str, Any]:
        """Return the values that go on, by their names in a file."""
        history = {name: getattr(self.history, name) for name in _HISTORY}
        return history | {
            "num_skipped": self.recovery.skipped,
            "restores": self.recovery.restores,
            "rate": self.recovery.rate,
            "decay": self.schedule.decay,
            "best_block": self.best_block.bound,
            "best_spread": self.best_block.spread,
            "low_steps": self.best_block.low_steps,
            "retreats": self.best_block.retreats,
        }

    def _state(self) -> LoopState:
        """Return all that is needed to go on, after :meth:`_settle`."""
        rng, used = self._noise.state()
        counts = {
            "bad_in_a_row": self.recovery.bad_in_a_row,
            "since_kept": self.recovery.since_snapshot,
            "noise_used": used,
        }
        now = Snapshot.take(self.history.step, self.task.params, self.task.optimizer)
        return LoopState(
            self._numbers(),
            counts,
            torch.tensor(self.history.losses, dtype=torch.float64),
            rng,
            {"now": now, **self._states.snapshots()},
        )

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one to go on from."""
        if self.checkpoint is None:
            return
        saved = self.checkpoint.load(self.task.params)
        if saved is None:
            return
        with self.checkpoint.reading():
            self._restore(saved)

    def _restore(self, saved: LoopState) -> None:
        """Take the values of a checkpoint, each of the type that it has.

        Raises:
            Malformed: A value is of another type, or of no name.
        """
        known = self._numbers()
        for key, value in saved.state.items():
            if key not in known or not _alike(known[key], value):
                raise Malformed(f"its state has {key[:40]!r}, which is {str(value)[:40]!r}")
        numbers, task = {**known, **saved.state}, self.task
        history = {name: numbers[name] for name in _HISTORY}
        self.history = History(losses=[float(x) for x in saved.losses.tolist()], **history)
        self.recovery = Recovery(
            bad_in_a_row=saved.counts["bad_in_a_row"],
            since_snapshot=saved.counts["since_kept"],
            skipped=int(numbers["num_skipped"]),
            rate=float(numbers["rate"]),
            restores=list(numbers["restores"]),
        )
        self.best_block = BestBlock(
            bound=float(numbers["best_block"]),
            spread=float(numbers["best_spread"]),
            low_steps=int(numbers["low_steps"]),
            retreats=list(numbers["retreats"]),
        )
        decay = numbers["decay"]
        if decay is not None:
            begin, seconds, length = decay  # JSON has lists only
            decay = (int(begin), float(seconds), int(length))
        self.schedule.decay = decay
        shots = saved.snapshots
        shots["now"].put(task.params, task.optimizer)
        check_optimizer(task.optimizer)
        self._states = SavedStates(shots["good"], shots.get("best"), shots.get("mean"))
        # Files of earlier versions hold the state after the last step's own numbers.
        self._noise.restore(saved.rng, saved.counts.get("noise_used", 0))


#: Fields of the record of a training, beside the losses.
_HISTORY = tuple(one.name for one in dataclasses.fields(History) if one.name != "losses")


def _alike(known: object, value: object) -> bool:
    """Tell whether a value of a file is of the type that it has to be."""
    if known is None or value is None:
        return True
    numbers = isinstance(known, (int, float)) and isinstance(value, (int, float))
    return numbers or type(value) is type(known)
