"""The engine of a training as the loop sees it: steps, copies of its state, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._engine.program import BlockResult, SnapshotRunner
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._train.engine_faults import failed
from pyro_nfvi._train.engine_selection import Chosen
from pyro_nfvi._train.step import EagerRunner
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import NFVIError


class EngineFailed(NFVIError):
    """An engine that was not asked for by name failed in a step; the message is the reason."""


@dataclass(frozen=True)
class RunnerState:
    """The state of a runner at one step, in a form of its own."""

    step: int
    state: Any


State: TypeAlias = Snapshot | RunnerState


class Stepper:
    """Run blocks of steps, and copy and restore the state that they change.

    Args:
        engine: The engine.
        params: All leaves that are trained.
        optimizer: Holds them.
    """

    def __init__(
        self, engine: Chosen, params: Sequence[Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self._params, self._optimizer = params, optimizer
        self._live = True  # the live parameters are those of the runner
        self._set(engine)

    def _set(self, engine: Chosen) -> None:
        self.engine, runner = engine, engine.runner
        # A question to a protocol takes as long as ten steps of a small flow: it is asked once.
        self._copies = runner if isinstance(runner, SnapshotRunner) else None

    def push(self) -> None:
        """Take the live parameters and the optimiser's state."""
        self.engine.runner.push()

    def pull(self) -> None:
        """Make the live parameters and the optimiser's state those of the runner."""
        if not self._live:
            self.engine.runner.pull()
            self._live = True

    def run(self, eps: Tensor, streams: TensorDict, rates: Tensor) -> BlockResult:
        """Take steps.

        Raises:
            EngineFailed: The engine failed, and another can take its place: what it left behind
                is not known. What an engine that was asked for by name raises passes through.
        """
        self._live = False
        try:
            return self.engine.runner.run(eps, streams, rates)
        except Exception as error:  # an engine may fail in any way
            if self.engine.watch is None or self.engine.asked:
                raise
            raise EngineFailed(str(failed("run", error))) from error

    def take(self, step: int) -> State:
        """Copy the present state, in the runner's own form if it has one."""
        if self._copies is not None:
            return RunnerState(step, self._copies.snapshot())
        self.pull()
        return Snapshot.take(step, self._params, self._optimizer)

    def put(self, state: State) -> None:
        """Put runner and live parameters into an earlier state."""
        runner = self.engine.runner
        if isinstance(state, Snapshot):
            state.put(self._params, self._optimizer)
            runner.push()
        else:
            assert self._copies is not None
            self._copies.restore(state.state)
            runner.pull()
        self._live = True

    def settle(self, states: Sequence[State]) -> list[Snapshot]:
        """Make the live parameters true, and return the states as snapshots."""
        now = self.take(0)
        settled = [self._snapshot(state) for state in states]
        if isinstance(now, RunnerState):
            self.put(now)
        self._live = True
        return settled

    def _snapshot(self, state: State) -> Snapshot:
        if isinstance(state, Snapshot):
            return state
        self.put(state)
        return Snapshot.take(state.step, self._params, self._optimizer)

    @property
    def comparable(self) -> bool:
        """Tell whether there is an eager step to compare with."""
        return self.engine.watch is not None

    def changed(self, eps: Tensor, streams: TensorDict, groups: int) -> str | None:
        """Compare a step with the eager one, leaving the state alone; return a difference.

        Args:
            eps: Noise of one step ``(P, D)``.
            streams: Its other inputs.
            groups: Number of the optimiser's groups.

        Raises:
            EngineFailed: As of :meth:`run`.
        """
        assert self.engine.watch is not None
        self.pull()
        now = self.take(0)
        rates = torch.zeros(1, groups, dtype=torch.float64)
        one = eps.unsqueeze(0), {name: index.unsqueeze(0) for name, index in streams.items()}
        result = self.run(*one, rates)
        self.put(now)
        return self.engine.watch.changed(eps, streams, float(result.bounds[0]))

    def fall_back(self, step: int, problem: str) -> None:
        """Go on with the eager step; states in the runner's own form are settled before."""
        assert self.engine.watch is not None
        reason = f"{self.engine.backend} until step {step}, then {problem}"
        runner = EagerRunner(self.engine.watch.step)
        self._set(Chosen("eager", reason, runner))
        self.push()
