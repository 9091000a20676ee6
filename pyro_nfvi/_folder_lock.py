"""Locks on folders of unfinished work, by which those of processes that died are recognized."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: abandoned work is recognized by its age
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class UnfinishedWork:
    """Rules by which files of unfinished work are removed."""

    #: Seconds after which work is given up for lost where locks cannot tell: longer than any
    #: compile or write takes, short enough that a disk does not fill up.
    lost_after: float = 3600.0


UNFINISHED = UnfinishedWork()
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed, at the latest when the process ends.

    Returns:
        The descriptor to close; -1 where folders cannot be locked; None if another process has
        locked it, or it is gone.
    """
    if fcntl is None:
        return -1
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(folder, follow_symlinks=False).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system that knows no locks
        os.close(descriptor)
        return -1
    os.close(descriptor)
    return None
