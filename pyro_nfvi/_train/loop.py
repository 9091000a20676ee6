"""The training loop: steps, schedule, stopping, recovery, checkpoints."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._engine.program import BlockResult, Keeper
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.checkpoint import Checkpoint
from pyro_nfvi._train.convergence import Plateau, StopReason
from pyro_nfvi._train.engine_selection import Chosen, failed
from pyro_nfvi._train.learning_rate import Schedule
from pyro_nfvi._train.left_out_particles import LAST_STEPS, left_out
from pyro_nfvi._train.loop_state import LoopState
from pyro_nfvi._train.noise import Noise
from pyro_nfvi._train.nonfinite import blame
from pyro_nfvi._train.progress import SILENT, Bar, Progress, StepInfo
from pyro_nfvi._train.snapshot import Kept, Snapshot, averaged
from pyro_nfvi._train.step import EagerRunner
from pyro_nfvi._train.stop_reason import reason_of
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import DivergedError, EngineWarning, FileError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._findings import LeftOut
from pyro_nfvi.objectives._objective import Objective

AnyState = TypeVar("AnyState", Snapshot | Kept, Snapshot | Kept | None)

#: Skipped steps in a row after which the last good state comes back at half the rate.
_PATIENCE = 5
#: How often that may happen.
_RESTORES = 5
#: Good steps between two states to go back to, at least.
_KEEP_EVERY = 100
#: Blocks after which a captured step is compared with the model as it is then.
_CHECKS = {1, 16, 256, 4096}
#: Seconds that a block of steps takes at most, as far as that is known.
_LONGEST = 0.2
#: Seconds that a training has at least: one step is taken however late it is.
_SHORTEST = 1e-3


class Loop:
    """Runs steps until the schedule is over, and keeps the best state.

    Args:
        engine: What takes the steps.
        guide: The guide that is trained.
        log_joint: The model's log joint.
        objective: What is estimated.
        params: All leaves that are trained.
        optimizer: Holds them.
        schedule: Rate and length.
        num_particles: Rows of noise in each step.
        generator: Source of the noise; None draws from torch's own (forked) state.
        stop: Whether a flat bound ends the constant phase.
        callbacks: Called with a :class:`StepInfo` after each step; True stops the fit.
        checkpoint: Where to write the state, or None.
        progress: Shows a bar.
        budget: Time for the steps, which begins when the call did; one step is taken in any case.
        what: What is trained, for the bar.
        first: What the objective takes for the number of the first step.
        average: Whether to average the states of the decay.
    """

    def __init__(
        self,
        engine: Chosen,
        guide: AutoFlow,
        log_joint: LogJoint,
        objective: Objective,
        params: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        num_particles: int,
        generator: torch.Generator | None,
        stop: bool,
        callbacks: Sequence[Callable[[StepInfo], Any]],
        checkpoint: Checkpoint | None,
        progress: Progress = SILENT,
        budget: Budget = UNLIMITED,
        what: str = "training",
        first: int = 0,
        average: bool = False,
    ) -> None:
        self._use(engine)
        self.guide, self.log_joint = guide, log_joint
        self.objective, self.first, self.average = objective, first, average
        #: Mean of the states of the decay; its ``step`` is how many they are.
        self.mean: Snapshot | None = None
        self.params, self.optimizer, self.schedule = list(params), optimizer, schedule
        self.num_particles, self.generator = num_particles, generator
        self.stop, self.callbacks, self.checkpoint = stop, callbacks, checkpoint
        self.progress, self.budget, self.what = progress, budget, what
        self.plateau = Plateau()
        self.state = LoopState()
        self._rates = torch.tensor(
            [float(group["lr"]) for group in optimizer.param_groups], dtype=torch.float64
        )
        # Pyro's ClippedAdam lowers its rate by itself, once in each step.
        self._decays = torch.tensor(
            [float(group.get("lrd", 1.0)) for group in optimizer.param_groups], dtype=torch.float64
        )
        self.noise = Noise(guide.density(), log_joint, num_particles, generator)
        self._true = True  # whether the live parameters are those of the runner
        self._pace = math.inf  # seconds that a step takes
        self._bad_in_a_row = 0
        self._since_kept = 0
        self._good: Snapshot | Kept = Snapshot.take(0, self.params, optimizer)
        self._best: Snapshot | Kept | None = None

    def _use(self, engine: Chosen) -> None:
        self.engine, self.runner = engine, engine.runner
        self._keeper = self.runner if isinstance(self.runner, Keeper) else None

    @property
    def good(self) -> Snapshot:
        """The last state that is good to go back to, after :meth:`settle`."""
        assert isinstance(self._good, Snapshot)
        return self._good

    @property
    def best(self) -> Snapshot | None:
        """The state at the end of the best block of steps, after :meth:`settle`."""
        assert not isinstance(self._best, Kept)
        return self._best

    def resume(self, good: Snapshot, best: Snapshot | None) -> None:
        """Take the states of an earlier run of this fit."""
        self._good, self._best = good, best

    def run(self) -> StopReason:
        """Train; return why it stopped.

        Raises:
            DivergedError: Gradients were not finite again and again.
        """
        state, schedule = self.state, self.schedule
        if self.checkpoint is not None and self.checkpoint.resume:
            self.checkpoint.load_into(self)
        # What an earlier call took of a fit that is resumed is no part of this one's time.
        if self.budget.limit is not None:
            schedule.max_seconds = state.seconds + max(_SHORTEST, self.budget.left())
        self._begin = self.budget.clock() - state.seconds
        self.runner.push()
        word = ""
        with self.progress.bar(self.what, schedule.max_steps, state.step) as bar:
            try:
                while not word and not schedule.finished(state.step, state.seconds):
                    word = self._block(bar)
            except KeyboardInterrupt:
                word = "interrupted"
            finally:
                self.settle()
        self._write_checkpoint()
        return reason_of(self, word)

    def left_out(self) -> LeftOut | None:
        """Say which share of the particles the last steps left out, and why."""
        if not any(self.state.left_out):
            return None
        eps, streams = self.noise.look(1)
        numbers = self.objective.stream(self.first + self.state.step, 1)
        streams = streams | {name: value.to(eps.device) for name, value in numbers.items()}
        streams = {name: value[0] for name, value in streams.items()}
        return left_out(self.guide, self.log_joint, self.state.left_out, eps[0], streams)

    def _block(self, bar: Bar) -> str:
        """Take some steps; return a word to stop, or an empty string."""
        state, schedule = self.state, self.schedule
        eps, streams = self.noise.look(self._length())
        numbers = self.objective.stream(self.first + state.step, len(eps))
        streams = streams | {name: value.to(eps.device) for name, value in numbers.items()}
        if self._to_check():
            self._check(eps[0], {name: index[0] for name, index in streams.items()})
        factors = torch.tensor(
            schedule.block(state.step, len(eps), state.seconds), dtype=torch.float64
        )
        rates = (state.rate * factors).unsqueeze(-1) * self._rates
        if bool((self._decays != 1).any()):
            taken = torch.arange(state.step, state.step + len(eps), dtype=torch.float64)
            rates = rates * self._decays ** taken.unsqueeze(-1)
        state.decay = schedule.decay
        begin = self.budget.clock()
        self._true = False
        result = self._run(eps, streams, rates)
        if result is None:
            result = self.runner.run(eps, streams, rates)
        count = len(result.bounds)
        self.noise.use(count)
        losses = (-result.bounds).tolist()
        state.losses += losses
        bad = result.num_bad.tolist()
        state.num_bad += sum(bad)
        state.left_out = [*state.left_out, *bad][-LAST_STEPS:]
        now = self.budget.clock()
        state.seconds, self._pace = now - self._begin, (now - begin) / count
        for group, rate in zip(self.optimizer.param_groups, rates[count - 1].tolist()):
            group["lr"] = rate
        ok = bool(result.ok[-1])
        self._recover(count, eps[count - 1], {name: x[count - 1] for name, x in streams.items()},
                      ok=ok)  # fmt: skip
        self._look_back()
        bar.update(state.step, losses, schedule)
        if self.checkpoint is not None and self.checkpoint.due(state.step):
            self._write_checkpoint()
        if not self.callbacks:
            return "interrupted" if result.interrupted else ""
        self._pull()
        rate = self.optimizer.param_groups[0]["lr"]
        info = StepInfo(state.step, losses[-1], rate, state.seconds, not ok, self.guide)
        answers = [callback(info) for callback in self.callbacks]
        self.runner.push()  # a callback may have changed a parameter
        return "callback" if any(answer is True for answer in answers) else ""

    def _run(self, eps: Tensor, streams: TensorDict, rates: Tensor) -> BlockResult | None:
        """Take steps; None if a captured step failed and was left for the eager one.

        An engine that was asked for by name has no other behind it: what it raises ends the fit.
        """
        try:
            return self.runner.run(eps, streams, rates)
        except Exception as error:  # an engine may fail in any way
            if self.engine.watch is None or self.engine.asked:
                raise
            problem = failed("run", error)
        self._go_back(self._good)  # what the failed block left behind is not known
        self._give_up(str(problem))
        self.runner.push()
        return None

    def _to_check(self) -> bool:
        """Whether to compare with the eager step now: rarely, unless callbacks might do things."""
        if self.engine.watch is None or self.state.step % self.plateau.block:
            return False
        blocks = self.state.step // self.plateau.block
        return blocks > 0 and (bool(self.callbacks) or blocks in _CHECKS)

    def _check(self, eps: Tensor, subsample: TensorDict) -> None:
        """Go on with the eager step if the model is not the one that was captured."""
        assert self.engine.watch is not None
        self._pull()
        now = self._keep()
        rates = torch.zeros(1, len(self._rates), dtype=torch.float64)
        inputs = eps.unsqueeze(0), {name: index.unsqueeze(0) for name, index in subsample.items()}
        result = self._run(*inputs, rates)
        if result is None:
            return
        self._go_back(now)
        found = float(result.bounds[0])
        problem = self.engine.watch.changed(eps, subsample, found)
        if problem is None:
            return
        warnings.warn(
            f"The {self.engine.name} engine ran {self.state.step} steps and is given up: "
            f"{problem}. If the model is meant to change, use engine='svi'.",
            EngineWarning,
            stacklevel=2,
        )
        self._give_up(problem)

    def _give_up(self, problem: str) -> None:
        """Leave a captured step for the eager one, from the present state."""
        assert self.engine.watch is not None
        self.settle()
        name, step = self.engine.name, self.state.step
        reason = f"{name} until step {step}, then {problem}"
        runner = EagerRunner(self.engine.watch.step)
        self._use(Chosen("svi", reason, runner, seconds=self.engine.seconds))
        self.state.notes.append(f"step {step}: {problem}; went on with engine 'svi'")

    def _length(self) -> int:
        """How many steps can be taken before something has to be done between two."""
        if self.callbacks:
            return 1
        step = self.state.step
        span = self.plateau.span(step + 1, often=self.average)
        longest = min(_LONGEST, 0.01 * (self.schedule.max_seconds or math.inf))
        ends = [
            self.noise.left,
            self.schedule.ahead(step),
            span - step % span,
            # Ctrl-C and the clock are looked at between blocks.
            int(longest / max(1e-9, self._pace)),
        ]
        if self.checkpoint is not None:
            ends.append(self.checkpoint.every - step % self.checkpoint.every)
        return max(1, min(ends))

    def _pull(self) -> None:
        """Make the live parameters and the optimiser's state true."""
        if not self._true:
            self.runner.pull()
            self._true = True

    def _keep(self) -> Snapshot | Kept:
        """Copy the present state, in the runner's own form if it has one."""
        if self._keeper is not None:
            return Kept(self.state.step, self._keeper.keep())
        self._pull()
        return Snapshot.take(self.state.step, self.params, self.optimizer)

    def _go_back(self, kept: Snapshot | Kept) -> None:
        """Put runner and live parameters into an earlier state."""
        if isinstance(kept, Snapshot):
            kept.put(self.params, self.optimizer)
            self.runner.push()
            return
        assert self._keeper is not None
        self._keeper.put_back(kept.state)
        self.runner.pull()

    def settle(self) -> None:
        """Make the live parameters true, and snapshots of all states that are kept."""
        now = self._keep()
        self._good, self._best = self._settled(self._good), self._settled(self._best)
        if isinstance(now, Kept):
            self._go_back(now)
        self._true = True

    def _settled(self, kept: AnyState) -> AnyState:
        if not isinstance(kept, Kept):
            return kept
        self._go_back(kept)
        return Snapshot.take(kept.step, self.params, self.optimizer)

    def _recover(self, count: int, eps: Tensor, subsample: TensorDict, *, ok: bool) -> None:
        """Skip, then go back and halve the rate, then give up.

        Args:
            count: Steps just taken, of which only the last may be a bad one.
            eps: Noise of the last.
            subsample: Its indices.
            ok: Whether it was good.
        """
        state = self.state
        good = count - (not ok)
        if good:
            self._bad_in_a_row = 0
            self._since_kept += good
        if ok:
            if self._since_kept >= _KEEP_EVERY:
                self._since_kept = 0
                self._good = self._keep()
            return
        state.num_skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row < _PATIENCE:
            return
        self._pull()
        where = blame(self.guide, self.log_joint, eps, subsample)
        if len(state.restores) >= _RESTORES:
            self._go_back(self._good)
            raise DivergedError(
                f"The fit gave up at step {state.step}: {where}. It went back to an earlier state "
                f"{_RESTORES} times, each time at half the learning rate. Look at that site's "
                "distribution (a scale that can reach 0, a log of a small number); use float64; or "
                "start closer: AutoFlow(model, init_loc_fn=..., init_scale=0.01), "
                "NFVI(..., optim=1e-3). The best fit until then is this error's .fit."
            )
        self._go_back(self._good)
        state.rate *= 0.5
        state.restores.append(state.step)
        state.notes.append(
            f"step {state.step}: {where}; went back to step {self._good.step} and halved the "
            "learning rate"
        )
        self._bad_in_a_row = self._since_kept = 0
        self.mean = None  # another path

    def _look_back(self) -> None:
        """Now and then: is the bound flat, and were the last steps the best?"""
        state, plateau = self.state, self.plateau
        span = plateau.span(state.step, often=self.average)
        if state.step % span and state.step != self.schedule.last:
            return
        # What is left at the end may be a few steps: too few to judge a state by.
        steps = max(plateau.block, state.step % span or span)
        if self.average and self.schedule.decay is not None:
            self._pull()
            self.mean = averaged(self.mean, self.params)
        # A bound that rose because the objective changed says nothing of what more steps bring.
        judged = 2 * plateau.block * plateau.window
        still = self.objective.settled - self.first
        settled = still <= 0 or state.step >= still + judged
        recent = state.losses[-steps:]
        if not math.isfinite(sum(recent)):
            recent = [x for x in recent if math.isfinite(x)]
        if 2 * len(recent) >= steps:
            mean = -math.fsum(recent) / len(recent)
            if mean >= state.best_block:
                state.best_block, state.best_spread = mean, max(recent) - min(recent)
                # The same state may just have been kept to go back to.
                self._best = self._good if self._good.step == state.step else self._keep()
                state.low_steps = 0
            elif settled:
                self._look_down(-statistics.median(recent), steps)
        # Nor does one that fell, or the way from there back up.
        back = max(state.retreats, default=-judged)
        if not settled or state.low_steps or state.step < back + judged:
            return
        if self.stop and self.schedule.decay is None and plateau.flat(state.losses):
            state.converged = True
            self.schedule.begin_decay(state.step, state.seconds)

    def _look_down(self, bound: float, steps: int) -> None:
        """Go back to the best state, at half the rate, when the bound has fallen and stays low.

        Args:
            bound: Median since the last look, which one wild estimate does not move.
            steps: How many steps that are.
        """
        state = self.state
        fall = state.fallen(bound, steps)
        if fall is None or len(state.retreats) >= _RESTORES:
            return
        assert self._best is not None
        self._go_back(self._best)
        self._good = self._best
        state.rate *= 0.5
        state.retreats.append(state.step)
        state.notes.append(
            f"step {state.step}: the bound had fallen by {fall:.2g} nats; went back to step "
            f"{self._best.step} and halved the learning rate"
        )
        state.low_steps = self._since_kept = 0
        self.mean = None

    def _write_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        self.settle()
        try:
            self.checkpoint.save(self)
        except FileError as error:  # the fit itself is worth more than its checkpoint
            warnings.warn(f"Checkpoint not written: {error}", stacklevel=2)
