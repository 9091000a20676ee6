"""Numbers of processes that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class LauncherRecipe:
    """Numbers of the watch over a launcher."""

    #: Seconds between two looks at the parent process.
    parent_look: float = 0.5
    #: Seconds until an orphan that does not stop is ended.
    orphan_grace: float = 20.0
    #: Status of a process that a signal ended: 128 + SIGTERM.
    terminated: int = 143


@dataclass(frozen=True)
class WaitTimes:
    """Longest waits of processes for each other."""

    #: For all to come to the same call of ``run``.
    meeting: timedelta = timedelta(minutes=10)
    #: Within a step, in which all do the same work: a machine that hangs is given up then.
    step: timedelta = timedelta(minutes=10)
    #: For the first process between two evaluations: a compile, checks, a user's callback.
    idle: timedelta = timedelta(days=7)


LAUNCHER = LauncherRecipe()
WAITS = WaitTimes()
