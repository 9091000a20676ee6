"""Progress of a running fit: a bar, or a line, for each stage, and a record for each callback."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from pyro_nfvi._model_lock import restore_in_child
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi.guides._auto_flow import AutoFlow

# The lock of all bars may be held by a thread that a fork leaves behind.
restore_in_child(lambda: lambda: tqdm.set_lock(threading.RLock()))

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


class _Line:
    """Stand-in for a bar where there is no terminal: one line of text, at its end.

    Args:
        what: The stage.
        unit: Name of a unit of its work.
        done: Units that were done before.
    """

    disable = False

    def __init__(self, what: str, unit: str, done: int) -> None:
        self.n, self.total = done, None
        self._what, self._unit, self._told, self._begin = what, unit, "", time.monotonic()

    def update(self, count: float = 1) -> None:
        """Count units of work."""
        self.n += int(count)

    def set_postfix_str(self, told: str, *, refresh: bool = True) -> None:
        """Note what is said behind the count."""
        self._told = told

    def close(self) -> None:
        """Write the line."""
        told = f", {self._told}" if self._told else ""
        count = f"{self.n} {self._unit}{'' if self.n == 1 else 's'}"
        seconds = time.monotonic() - self._begin
        print(f"NFVI: {self._what}: {count}, {seconds:.1f} s{told}", file=sys.stderr, flush=True)


def _open_bar(what: str, total: int | None, unit: str, *, show: bool, done: int = 0) -> Any:
    """Open the bar of a stage, or its stand-in where standard error is no terminal or notebook."""
    notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    if show and not notebook and not sys.stderr.isatty():
        return _Line(what, unit, done)
    return tqdm(
        total=total, initial=done, disable=not show, desc=f"NFVI: {what}", unit=unit, leave=True
    )


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
        bar = _open_bar(what, total, unit, show=self.show)
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
        self._bar = _open_bar(what, total, "step", show=show, done=done)

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
