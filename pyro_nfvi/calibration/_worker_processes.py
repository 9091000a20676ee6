"""Independent tasks over several processes, or in this one where that cannot be."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

_NAME = "nfvi-worker"


@dataclass(frozen=True)
class Died:
    """What stands for the result of a task whose process ended: killed, or out of memory."""

    code: int | None


@dataclass
class _Worker:
    process: Any
    connection: Connection
    told: bool = False
    ready: bool = False
    task: int | None = None


@dataclass
class Pool:
    """Runs ``function(shared, task)`` for every task, over processes that are started afresh.

    They are spawned and not forked, for torch's threads do not survive a fork. What is shared is
    pickled once for each. Where it cannot be pickled, or where no worker comes up, the tasks run
    here, one after the other, and ``note`` says why.

    Args:
        function: A function at the top of a module.
        shared: What every task needs.
        num_workers: Processes; 1 is this one.
    """

    function: Callable[[Any, Any], Any]
    shared: Any
    num_workers: int
    note: str = ""
    _workers: list[_Worker] = field(default_factory=list)

    def run(self, tasks: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        """Yield ``(number of the task, result)`` as they come.

        A task whose process ends yields :class:`Died`, and another process takes its place. What
        runs is ended when the iterator is closed.
        """
        left = list(range(len(tasks)))[::-1]
        payload = self._payload()
        try:
            if payload is not None:
                yield from self._spread(payload, tasks, left)
        finally:
            self._end()
        with one_thread():
            while left:
                number = left.pop()
                yield number, self.function(self.shared, tasks[number])

    def _payload(self) -> bytes | None:
        if self.num_workers < 2:
            return None
        state = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args)
        try:
            payload = pickle.dumps((self.function, self.shared, state))
            pickle.loads(payload)
        except Exception as error:
            self._here(
                f"the model cannot be sent to other processes ({type(error).__name__}: {error}); "
                "define it at the top of a module"
            )
            return None
        if b"__main__" in payload and not _main_can_be_imported():
            self._here(
                "the model is defined in a notebook or at the prompt, which other processes cannot "
                "import; put it into a .py file"
            )
            return None
        return payload

    def _here(self, why: str) -> None:
        self.note = f"ran in this process, one fit after the other: {why}"
        self.num_workers = 1

    def _spread(
        self, payload: bytes, tasks: Sequence[Any], left: list[int]
    ) -> Generator[tuple[int, Any], None, None]:
        self._workers = [self._start() for _ in range(min(self.num_workers, len(left)))]
        while self._workers and (left or any(w.task is not None for w in self._workers)):
            by_connection = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(by_connection)):
                worker = by_connection[connection]  # type: ignore[index]
                try:
                    answer = pickle.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    yield from self._lost(worker, left)
                    continue
                if worker.ready and worker.task is not None:
                    number, worker.task = worker.task, None
                    yield number, answer
                self._next(worker, payload, tasks, left)

    @staticmethod
    def _next(worker: _Worker, payload: bytes, tasks: Sequence[Any], left: list[int]) -> None:
        """Give a worker that waits what it needs next."""
        with suppress(OSError):  # it has ended, as will be seen when its answer is read
            if not worker.told:
                # Not before it is up: a long message would keep the others from starting.
                worker.told = True
                worker.connection.send_bytes(payload)
                return
            worker.ready = True
            if left:
                worker.task = left.pop()
                worker.connection.send_bytes(pickle.dumps(tasks[worker.task]))

    def _lost(self, worker: _Worker, left: list[int]) -> Generator[tuple[int, Any], None, None]:
        worker.process.join(5)
        worker.connection.close()
        self._workers.remove(worker)
        if not worker.ready:
            # One that never came up: another would not either.
            if not self._workers:
                self._here(
                    "the processes for the others ended at their start; in a script, the call "
                    'belongs below `if __name__ == "__main__":`, since each of them imports it'
                )
            return
        if worker.task is not None:
            yield worker.task, Died(worker.process.exitcode)
        if left:
            self._workers.append(self._start())

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name=_NAME, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _end(self) -> None:
        for worker in self._workers:
            if worker.task is not None or not worker.ready:
                worker.process.terminate()
            worker.connection.close()  # at which one that waits goes home
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []


def _serve(connection: Connection) -> None:
    """What a worker does: take what is shared, then one task after the other."""
    # Ctrl-C at the terminal reaches every process; the one that started this one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leave by the door
    try:
        connection.send_bytes(pickle.dumps(None))
        function, shared, (dtype, validation) = pickle.loads(connection.recv_bytes())
        torch.set_num_threads(1)
        torch.set_default_dtype(dtype)
        torch.distributions.Distribution.set_default_validate_args(validation)
        connection.send_bytes(pickle.dumps(None))
        while True:
            task = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(function(shared, task)))
    except (EOFError, OSError):
        return  # the other end is gone


def refuse_in_worker() -> None:
    """End a worker that runs an unguarded script while it imports it, before it starts others."""
    if multiprocessing.current_process().name.startswith(_NAME):
        raise SystemExit(1)


def _main_can_be_imported() -> bool:
    main = sys.modules.get("__main__")
    if getattr(getattr(main, "__spec__", None), "name", None):
        return True
    file = getattr(main, "__file__", None)
    return file is not None and os.path.isfile(file)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as the workers do, so that sums round alike; then as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
