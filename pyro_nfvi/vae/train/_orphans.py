"""Processes of a launcher end with it: an orphan would go on writing into the folder of a run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

#: Seconds between two looks at the parent, and until an orphan that does not stop is ended.
_LOOK, _GRACE = 0.5, 20.0
#: What a shell is told of a process that ended so: 128 + SIGTERM.
_ENDED = 143


class ParentWatch:
    """Notices that the process which launched this one is gone.

    ``lost`` is then true, so that the run ends after its step; a process that hangs, waiting for
    another that is gone too, is ended after a while. Without a launcher nothing is watched: a run
    that was started with ``nohup`` outlives its shell.

    Args:
        launched: Whether a launcher such as torchrun started this process.
        grace: Seconds from the loss of the parent to the end of a process that hangs.
        end: What ends the process.

    Example:
        >>> with ParentWatch(launched=False) as watch:
        ...     watch.lost()
        False
    """

    def __init__(
        self,
        *,
        launched: bool,
        grace: float = _GRACE,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._parent = os.getppid()
        self._launched, self._grace, self._end = launched, grace, end
        self._lost, self._done = threading.Event(), threading.Event()

    def lost(self) -> bool:
        """Tell whether the parent is gone."""
        return self._lost.is_set()

    def __enter__(self) -> ParentWatch:
        if self._launched:
            threading.Thread(target=self._watch, name="parent watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            if self._done.wait(_LOOK):
                return
        self._lost.set()
        if not self._done.wait(self._grace):
            self._end(_ENDED)


def launched() -> bool:
    """Tell whether a launcher of several processes, such as torchrun, started this one."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
