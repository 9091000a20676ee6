"""One turn at a time for everything that runs a model or borrows state of the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Called at the beginning of a turn; each returns what brings the state back that it saw.
_SAVERS: list[Callable[[], Callable[[], None]]] = []


class _Turn:
    """A lock that its thread may take again, and that a fork leaves in order.

    Pyro's stack of handlers, its param store and torch's random state belong to the process. A
    thread that runs a model borrows them all, and another one that ran a model meanwhile would
    see, and spoil, what was borrowed.

    A process forked while another thread has its turn inherits all that is borrowed, and nobody to
    give it back. The child then brings back what there was before the turn, and its lock is free.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._owner = 0
        self._restore: list[Callable[[], None]] = []
        self._forked = False
        self._threads = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            if not self._depth:
                self._begin()
            self._depth += 1
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        try:
            if not self._depth:
                self._end()
        finally:
            self._lock.release()

    def _begin(self) -> None:
        self._restore = [saver() for saver in _SAVERS]
        self._owner = threading.get_ident()
        if self._forked:
            # The OpenMP that comes with PyTorch waits for ever for threads that a fork left behind.
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)

    def _end(self) -> None:
        self._restore = []
        if self._threads:
            torch.set_num_threads(self._threads)
            self._threads = 0

    def after_fork(self) -> None:
        """Put a child process in order."""
        self._forked = True
        depth, self._lock = self._depth, threading.RLock()
        if depth and self._owner == threading.get_ident():
            for _ in range(depth):  # it was this thread that forked, and its turn goes on
                self._lock.acquire()
            return
        restore, self._restore, self._depth, self._threads = self._restore, [], 0, 0
        for bring_back in restore:
            bring_back()


_TURN = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TURN.after_fork)


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread runs a model; let none begin before the end.

    The same thread may take it again inside. An error gives it back.

    Example:
        >>> from pyro_nfvi._model_lock import turn
        >>> with turn(), turn():
        ...     pass
    """
    with _TURN:
        yield


def takes_turn(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function run within :func:`turn`."""

    @wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _TURN:
            return function(*args, **kwargs)

    return inside


def restore_in_child(saver: Callable[[], Callable[[], None]]) -> None:
    """Have state of the process kept at the beginning of every turn, for a child of a fork.

    Args:
        saver: Looks at the state, and returns a function that brings it back.
    """
    _SAVERS.append(saver)


def _random_state() -> Callable[[], None]:
    state = torch.get_rng_state()
    return lambda: torch.set_rng_state(state)


restore_in_child(_random_state)
