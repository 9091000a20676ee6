"""Processes that a launcher such as torchrun started: their places, and their end with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyro_nfvi._parent import first_parent
from pyro_nfvi._processes.recipe import LAUNCHER
from pyro_nfvi.errors import OptionError

_UNSET = (
    "torchrun sets WORLD_SIZE, RANK and LOCAL_RANK: start with it, or unset them for one process."
)


class ParentWatch:
    """Notices that the process which launched this one is gone: an orphan would go on writing.

    ``lost`` is then true, so that the run ends after its step; a process that hangs, waiting for
    another that is gone too, is ended after a while. A launcher that ended while this process was
    still importing PyTorch is noticed too. Without a launcher nothing is watched: a run
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
        grace: float = LAUNCHER.orphan_grace,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._parent = first_parent()
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
            if self._done.wait(LAUNCHER.parent_look):
                return
        self._lost.set()
        if not self._done.wait(self._grace):
            self._end(LAUNCHER.terminated)


@dataclass(frozen=True)
class Place:
    """The place of this process among those of a launcher.

    Attributes:
        size: Number of processes.
        rank: Number of this one.
        local: Number of this one on its host.
    """

    size: int
    rank: int
    local: int


def place_among_processes() -> Place:
    """Read WORLD_SIZE, RANK and LOCAL_RANK, which torchrun sets.

    Raises:
        OptionError: One of them is no number, or out of range; says what to do.
    """
    size, rank, local = (
        _number(*one) for one in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if size < 1:
        raise OptionError(f"WORLD_SIZE is at least 1; got {size}. {_UNSET}")
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if not 0 <= value < size:
            raise OptionError(
                f"{name} is from 0 to WORLD_SIZE - 1, which is {size - 1}; got {value}. {_UNSET}"
            )
    return Place(size, rank, local)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError:
        raise OptionError(f"{name} is a whole number; got {text!r}. {_UNSET}") from None


def launched() -> bool:
    """Tell whether a launcher of several processes, such as torchrun, started this one."""
    return "TORCHELASTIC_RUN_ID" in os.environ or place_among_processes().size > 1
