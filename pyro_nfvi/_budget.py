"""``Budget``: the time that one call may take, on one clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pyro_nfvi.errors import OptionError


@dataclass(frozen=True)
class Budget:
    """A span of time on one clock: what it began with, and when it ends.

    Every stage of a call gets the same budget, or a part of it, and asks it between two units of
    work. Nothing is interrupted: a stage that finds its budget spent returns what it has.

    Attributes:
        limit: Seconds from ``begin`` on, or None for no limit.
        begin: When it began, on the clock.
        reserved: Seconds at the end that are kept for what comes later.
        clock: Gives the seconds of a clock that never goes back.

    Example:
        >>> from pyro_nfvi._budget import Budget
        >>> clock = iter([0.0, 3.0, 11.0]).__next__
        >>> budget = Budget.start(10.0, clock)
        >>> budget.left(), budget.over()
        (7.0, True)
    """

    limit: float | None = None
    begin: float = 0.0
    reserved: float = 0.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def start(
        cls, limit: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Budget:
        """Return a budget that begins now.

        Raises:
            OptionError: ``limit`` is neither a positive number of seconds nor None.
        """
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and limit > 0):
            raise OptionError(f"max_seconds is a positive time or None; got {limit!r}.")
        return cls(limit, clock(), clock=clock)

    def spent(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.begin

    def left(self) -> float:
        """Seconds that are left, at least 0; infinity without a limit."""
        if self.limit is None:
            return math.inf
        return max(0.0, self.limit - self.reserved - self.spent())

    def over(self) -> bool:
        """Tell whether no time is left."""
        return self.left() <= 0.0

    def affords(self, seconds: float) -> bool:
        """Tell whether work of so many seconds would end in time."""
        return seconds <= self.left()

    def part(self, share: float) -> Budget:
        """Return a budget that begins now and has a share of what is left."""
        if self.limit is None:
            return self
        now = self.clock()
        left = max(0.0, self.limit - self.reserved - (now - self.begin))
        return replace(self, begin=now, limit=share * left, reserved=0.0)

    def at_most(self, seconds: float) -> Budget:
        """Return a budget that begins now and ends after so many seconds, or with this one."""
        now = self.clock()
        left = math.inf if self.limit is None else self.limit - self.reserved - (now - self.begin)
        return replace(self, begin=now, limit=max(0.0, min(seconds, left)), reserved=0.0)

    def reserving(self, seconds: float) -> Budget:
        """Return the same budget with its last ``seconds`` kept for something else."""
        return replace(self, reserved=self.reserved + seconds)


#: No limit, for stages that are called by themselves.
UNLIMITED = Budget()
