"""Progress of a running fit: a bar, or a line, for each stage, and a record for each callback."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._progress_bar import progress_bar
from pyro_nfvi._train.recipe import TRAINING

if TYPE_CHECKING:
    from pyro_nfvi.guides._auto_flow import AutoFlow

#: Units that are done when a stage ends well: it counts none of them itself.
_WHOLE = ("look", "stage", "engine")


@dataclass(frozen=True)
class StepInfo:
    """The record that a callback gets after each step. Return True to stop the fit.

    Attributes:
        step: Steps taken, from 1.
        loss: Negative bound of this step, in nats.
        lr: Learning rate of the first parameter group, the flow's if there is one.
        seconds: Time since the first step.
        skipped: This step was skipped because a gradient was not finite.
        guide: The guide, with its present parameters.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    skipped: bool
    guide: AutoFlow


@dataclass(frozen=True)
class Progress:
    """Progress of the stages of one call: each has a bar that says what it does.

    Where nobody sees bars move (a file, a pipe), each stage is one line of plain text at its end.

    Attributes:
        show: Show anything.
    """

    show: bool = True

    @contextmanager
    def stage(
        self, what: str, total: int | None = None, *, unit: str = "evaluation"
    ) -> Iterator[Callable[[int], object]]:
        """Show a bar for the time of a stage; yield what counts units of its work.

        Args:
            what: What the stage does, in words.
            total: Units of work, where that is known.
            unit: Name of such a unit.
        """
        bar = progress_bar(f"NFVI: {what}", total, unit=unit, show=self.show)
        try:
            yield bar.update
            if total is not None and bar.n < total and unit in _WHOLE:
                bar.update(total - bar.n)
        finally:
            bar.close()

    def bar(self, what: str, total: int, done: int) -> Bar:
        """Return the bar of a training."""
        return Bar(total, done, show=self.show, what=what)


#: For stages that are called by themselves.
SILENT = Progress(show=False)


class Bar:
    """A progress bar with the smoothed bound; silent if asked to be."""

    def __init__(self, total: int, done: int, *, show: bool, what: str = "training") -> None:
        self._recent: deque[float] = deque(maxlen=TRAINING.shown_steps)
        self._show = show
        self._bar = progress_bar(f"NFVI: {what}", total, unit="step", show=show, done=done)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, step: int, losses: Sequence[float], schedule: Schedule) -> None:
        """Count the steps of these losses, of which the last is number ``step``."""
        if self._show:
            last = losses[-TRAINING.shown_steps :]
            self._recent.extend(loss for loss in last if math.isfinite(loss))
        if (step % 10 == 0 or len(losses) > 1) and self._recent:
            phase = "settling" if schedule.decay else "searching"
            self._bar.total = schedule.last
            mean = sum(self._recent) / len(self._recent)
            self._bar.set_postfix_str(f"bound {-mean:.2f} nats, {phase}", refresh=False)
        self._bar.update(len(losses))
