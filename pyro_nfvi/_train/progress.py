"""What a running fit shows and tells: a bar for each stage, and a note to each callback."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from tqdm.auto import tqdm

from pyro_nfvi._model_lock import keep
from pyro_nfvi._train.learning_rate import Schedule
from pyro_nfvi.guides._auto_flow import AutoFlow

# The lock of all bars may be held by a thread that a fork leaves behind.
keep(lambda: lambda: tqdm.set_lock(threading.RLock()))

#: Steps over which the shown bound is averaged.
_SMOOTH = 50


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after each step. Return True to stop the fit.

    Attributes:
        step: Steps taken, from 1.
        loss: Negative bound of this step, in nats.
        lr: Learning rate of the first parameter group, the flow's if there is one.
        seconds: Time since the first step.
        skipped: Whether this step was skipped because a gradient was not finite.
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
    """What the stages of one call show: each a bar that says what it does.

    Attributes:
        show: Whether anything is shown.
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
        with tqdm(
            total=total, disable=not self.show, desc=f"NFVI: {what}", unit=unit, leave=True
        ) as bar:
            yield bar.update

    def bar(self, what: str, total: int, done: int) -> Bar:
        """Return the bar of a training."""
        return Bar(total, done, show=self.show, what=what)


#: For stages that are called by themselves.
SILENT = Progress(show=False)


class Bar:
    """A progress bar with the smoothed bound; silent if asked to be."""

    def __init__(self, total: int, done: int, *, show: bool, what: str = "training") -> None:
        self._recent: deque[float] = deque(maxlen=_SMOOTH)
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not show,
            desc=f"NFVI: {what}",
            unit="step",
            leave=True,
        )

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
        if self._bar.disable:
            return
        self._recent.extend(loss for loss in losses if math.isfinite(loss))
        if (step % 10 == 0 or len(losses) > 1) and self._recent:
            phase = "settling" if schedule.decay else "searching"
            self._bar.total = schedule.last
            mean = sum(self._recent) / len(self._recent)
            self._bar.set_postfix_str(f"bound {-mean:.2f} nats, {phase}", refresh=False)
        self._bar.update(len(losses))
