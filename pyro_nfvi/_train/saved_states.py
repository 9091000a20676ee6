"""States of a training that may be needed again: the last good one, the best, and their mean."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_nfvi._optim.iterate_averaging import averaged
from pyro_nfvi._optim.snapshot import Snapshot, check_optimizer
from pyro_nfvi._train.stepper import State, Stepper
from pyro_nfvi._train.task import Task


class SavedStates:
    """Keep states of a training, and go back to them.

    Args:
        task: What is trained.
        stepper: Takes the steps, and copies its state.

    Attributes:
        good: The last state that is good to go back to.
        best: The one at the end of the best block of steps; None before the first.
        mean: Mean of the states of the decay; its ``step`` counts them. None without averaging.
    """

    def __init__(self, task: Task, stepper: Stepper) -> None:
        self._task, self._stepper = task, stepper
        self.good: State = Snapshot.take(0, task.params, task.optimizer)
        self.best: State | None = None
        self.mean: Snapshot | None = None

    def keep_good(self, step: int) -> None:
        """Keep the present state as one to go back to."""
        self.good = self._stepper.take(step)

    def keep_best(self, step: int) -> None:
        """Keep the present state as the best one."""
        # The same state may just have been kept to go back to.
        self.best = self.good if self.good.step == step else self._stepper.take(step)

    def average(self) -> None:
        """Take the present state into the mean."""
        self._stepper.pull()
        self.mean = averaged(self.mean, self._task.params)

    def back_to_good(self) -> int:
        """Put the last good state back; return the step that it is of."""
        self._stepper.put(self.good)
        self.mean = None  # another path
        return self.good.step

    def back_to_best(self) -> int:
        """Put the best state back, which is good to go back to; return the step that it is of."""
        assert self.best is not None
        self.good = self.best
        return self.back_to_good()

    def settle(self) -> None:
        """Make the live parameters true, and hold no state in a form of the engine's own."""
        settled = self._stepper.settle([self.good, *([] if self.best is None else [self.best])])
        self.good = settled[0]
        self.best = None if self.best is None else settled[1]

    def snapshots(self, step: int) -> dict[str, Snapshot]:
        """Return the states by name, and the present one, after :meth:`settle`."""
        named = {"good": self.good, "best": self.best, "mean": self.mean}
        found = {"now": Snapshot.take(step, self._task.params, self._task.optimizer)}
        for name, state in named.items():
            assert state is None or isinstance(state, Snapshot)
            if state is not None:
                found[name] = state
        return found

    def restore(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Go on from :meth:`snapshots`.

        Raises:
            Malformed: The optimiser's state is not one of these parameters.
        """
        snapshots["now"].put(self._task.params, self._task.optimizer)
        check_optimizer(self._task.optimizer)
        self.good = snapshots["good"]
        self.best, self.mean = snapshots.get("best"), snapshots.get("mean")

    def others(self, step: int) -> list[Snapshot]:
        """Return settled states that may be better than the present one, of ``step``."""
        assert self.best is None or isinstance(self.best, Snapshot)
        return [
            *([] if self.best is None or self.best.step == step else [self.best]),
            *([] if self.mean is None else [self.mean]),
        ]
