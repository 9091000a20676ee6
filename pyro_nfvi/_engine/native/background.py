"""Sources that are compiled in the background, while a stage before runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyro_nfvi._engine.native.subprocesses import CANCELLATION, Cancellation


class _Task:
    """A compile in a thread of its own; the thread waits for the compiler's process."""

    def __init__(self, build: Callable[[], bytes]) -> None:
        self._build, self._cancellation = build, Cancellation()
        self._result: bytes | None = None
        # Ctrl-C during ``Thread.join`` marks a thread as ended that still runs (Python 3.11).
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="nfvi-compile", daemon=True).start()

    def _run(self) -> None:
        CANCELLATION.set(self._cancellation)
        try:
            self._result = self._build()
        except Exception:  # who needs it compiles again, and gets the reason
            self._result = None
        finally:
            self._ended.set()

    def wait(self, timeout: float) -> bytes | None:
        """Return the object, or None where there is none; a compile that takes longer is ended."""
        if not self._ended.wait(min(timeout, threading.TIMEOUT_MAX)):
            self.cancel()
        return self._result

    def cancel(self) -> None:
        """End it, with its files."""
        self._cancellation.cancel()
        self._ended.wait()


#: Compiles that have begun and were not asked for yet, by key.
_TASKS: dict[str, _Task] = {}

if hasattr(os, "register_at_fork"):  # a child process does not have the threads
    os.register_at_fork(after_in_child=_TASKS.clear)


def begin(key: str, build: Callable[[], bytes]) -> None:
    """Begin to build the object of a key; what fails is built again by who needs it."""
    if key not in _TASKS:
        _TASKS[key] = _Task(build)


def finish(key: str, timeout: float) -> bytes | None:
    """Wait for the object of a key; None where it was not begun, or did not become one."""
    task = _TASKS.get(key)
    if task is None:
        return None
    found = task.wait(timeout)  # Ctrl-C leaves the task to the end of the fit
    _TASKS.pop(key, None)
    return found


@contextmanager
def background() -> Iterator[None]:
    """End at the end what was begun within and is not needed."""
    before = set(_TASKS)
    try:
        yield
    finally:
        for key in [key for key in _TASKS if key not in before]:
            task = _TASKS.pop(key, None)
            if task is not None:
                task.cancel()
