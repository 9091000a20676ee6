"""Numbers of processes that belong together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LauncherRecipe:
    """Numbers of the watch over a launcher."""

    #: Seconds between two looks at the parent process.
    parent_look: float = 0.5
    #: Seconds until an orphan that does not stop is ended.
    orphan_grace: float = 20.0
    #: Status of a process that a signal ended: 128 + SIGTERM.
    terminated: int = 143


LAUNCHER = LauncherRecipe()
