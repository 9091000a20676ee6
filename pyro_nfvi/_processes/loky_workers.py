"""An executor of processes that are started afresh, of which one may die without the others."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any


class WorkerDied(RuntimeError):
    """A process ended before its task did.

    Args:
        code: Exit code of the process; minus a signal's number; None if it is not known.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(f"its process ended with code {code}: killed, or out of memory")
        self.code = code


class LokyWorkers:
    """Runs functions over processes of ``loky``, one executor of it for each process.

    The processes are started and not forked, since torch's threads do not survive a fork. If one
    ends, the future of its task raises :class:`WorkerDied`, another process takes its place, and
    the others go on.

    Args:
        num_workers: Most processes.

    Example:
        >>> workers = LokyWorkers(2)
        >>> workers.shutdown()
    """

    def __init__(self, num_workers: int) -> None:
        self._most = num_workers
        self._idle: list[Any] = []
        self._all: list[Any] = []
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._lock = threading.RLock()
        self._closed = False

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Return the future of ``function(*args)``."""
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((future, function, args))
            self._dispatch()
        return future

    def shutdown(self) -> None:
        """End all processes, whatever they do."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            idle = self._idle
            busy = [one for one in self._all if not any(one is other for other in idle)]
            self._all, self._idle = [], []
        for executor in idle:
            executor.shutdown(wait=True)
        for executor in busy:
            executor.shutdown(kill_workers=True)

    def _dispatch(self) -> None:
        """Give waiting tasks to processes that have none."""
        while self._waiting and not self._closed:
            if not self._idle and len(self._all) >= self._most:
                return
            future, function, args = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                executor = self._idle.pop() if self._idle else self._started()
                inner = executor.submit(function, *args)
            except Exception as error:  # no process can be started, or the idle one has ended
                future.set_exception(error)
                continue
            inner.add_done_callback(partial(self._finished, executor, future))

    def _started(self) -> Any:
        from loky.process_executor import ProcessPoolExecutor

        # Ctrl-C at the terminal reaches every process; the one that asked answers it.
        executor = ProcessPoolExecutor(
            1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        self._all.append(executor)
        return executor

    def _finished(self, executor: Any, future: Future[Any], inner: Future[Any]) -> None:
        from loky.process_executor import BrokenProcessPool

        error = inner.exception() if not inner.cancelled() else WorkerDied(None)
        with self._lock:
            if isinstance(error, BrokenProcessPool):
                code = re.search(r"\((-?\d+)\)", str(error))
                error = WorkerDied(int(code[1]) if code else None)
                if executor in self._all:
                    self._all.remove(executor)
            elif not self._closed:
                self._idle.append(executor)
            self._dispatch()
        if error is None:
            future.set_result(inner.result())
        else:
            future.set_exception(error)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
