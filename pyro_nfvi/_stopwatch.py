"""``Stopwatch``: which part of a call the time goes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyro_nfvi._timing import PARTS, Part, Timing


class Stopwatch:
    """Credit the time of one call to its parts, each second to one part.

    ``with watch.part("gaussian"):`` credits the time inside to that part. A part inside of another
    stops the other one for its time, so that the parts never overlap. One watch belongs to the
    thread of the call: work in the background costs the call what it waits for, and that is
    measured where it waits.

    Args:
        clock: Gives the seconds of a clock that never goes back.
        begin: When the call began, on that clock; now by default.

    Example:
        >>> from pyro_nfvi._stopwatch import Stopwatch
        >>> clock = iter([0.0, 1.0, 3.0, 6.0, 7.0, 8.0]).__next__
        >>> watch = Stopwatch(clock)
        >>> with watch.part("training"):  # from 1 to 7
        ...     with watch.part("compile"):  # from 3 to 6
        ...         pass
        >>> timing = watch.read()
        >>> timing.training, timing.compile, timing.other, timing.total
        (3.0, 3.0, 2.0, 8.0)
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, begin: float | None = None
    ) -> None:
        self._clock = clock
        self._begin = self._since = clock() if begin is None else begin
        self._seconds: dict[str, float] = dict.fromkeys((*PARTS, "other"), 0.0)
        self._running = "other"
        self._steps = 0

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Credit the time inside to a part, and none of it to the part that runs now."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def count_steps(self, steps: int) -> None:
        """Add steps of training."""
        self._steps += steps

    def read(self) -> Timing:
        """Return the seconds of all parts until now."""
        self._switch(self._running)
        return Timing(total=self._since - self._begin, **self._seconds, steps=self._steps)

    def _switch(self, name: str) -> str:
        """Credit what has passed to the running part, and let another run."""
        now, before = self._clock(), self._running
        self._seconds[before] += now - self._since
        self._since, self._running = now, name
        return before
