"""Independent tasks over several processes, or in this one where that cannot be."""

from __future__ import annotations

import functools
import os
import pickle
import re
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_nfvi.errors import ModelError


@dataclass(frozen=True)
class Died:
    """Result of a task whose process ended: killed, or out of memory.

    Attributes:
        code: Exit code of the process; minus a signal's number.
    """

    code: int | None


@dataclass
class Pool:
    """Runs ``function(shared, task)`` for every task, over processes that are started afresh.

    The processes are those of ``loky``: started and not forked, since torch's threads do not
    survive a fork. What is shared is pickled once, by ``cloudpickle``, which also takes functions
    of notebooks and closures. Where it cannot be pickled, or no process comes up, the tasks run
    here, one after the other, and ``note`` says why.

    Args:
        function: Applied to what is shared and to each task.
        shared: What every task needs.
        num_workers: Processes; 1 is this one.
    """

    function: Callable[[Any, Any], Any]
    shared: Any
    num_workers: int
    note: str = ""

    def run(self, tasks: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        """Yield ``(number of the task, result)`` as they come.

        A task whose process ends yields :class:`Died`, and another process takes its place. What
        runs is ended when the iterator is closed.
        """
        left = list(range(len(tasks)))[::-1]
        payload = self._payload()
        if payload is not None:
            yield from self._spread(payload, tasks, left)
        with one_thread():
            while left:
                number = left.pop()
                yield number, self.function(self.shared, tasks[number])

    def _payload(self) -> bytes | None:
        if self.num_workers < 2:
            return None
        import cloudpickle

        state = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args)
        try:
            payload: bytes = cloudpickle.dumps((self.function, self.shared, state))
            pickle.loads(payload)
        except Exception as error:
            self._here(
                f"the model cannot be sent to other processes ({type(error).__name__}: {error}). "
                "Keep open files, locks and generators out of it."
            )
            return None
        return payload

    def _here(self, why: str) -> None:
        self.note = f"ran in this process, one fit after the other: {why}"
        self.num_workers = 1

    def _spread(
        self, payload: bytes, tasks: Sequence[Any], left: list[int]
    ) -> Generator[tuple[int, Any], None, None]:
        """Run tasks over processes until none is left, or no process comes up.

        One executor for each process: if one ends, the others go on, and it is known which task it
        had.
        """
        import cloudpickle
        from loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

        running: dict[Future[Any], tuple[Any, int | None]] = {}
        with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
            # A file: sent through the pipe by which a process is started, a large payload would
            # keep the next one from starting.
            shared = Path(folder) / "shared"
            shared.write_bytes(payload)

            def start() -> None:
                # Ctrl-C at the terminal reaches every process; this one answers it.
                executor = ProcessPoolExecutor(
                    1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
                )
                running[executor.submit(_prepare, str(shared))] = executor, None

            try:
                for _ in range(min(self.num_workers, len(left))):
                    start()
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        executor, number = running[future]
                        try:
                            answer = future.result()
                        except BrokenProcessPool as error:
                            del running[future]
                            if number is not None:
                                code = re.search(r"\((-?\d+)\)", str(error))
                                yield number, Died(int(code[1]) if code else None)
                                if left:
                                    start()
                            elif not running and left:
                                self._here(f"no other process could be started ({error})")
                            continue
                        except Exception as error:
                            if number is not None:
                                raise
                            del running[future]  # the model's module is not found there
                            executor.shutdown()
                            if not running and left:
                                self._here(
                                    "the model cannot be read in other processes "
                                    f"({type(error).__name__}: {error})"
                                )
                            continue
                        del running[future]
                        if left:
                            following = left.pop()
                            task = cloudpickle.dumps(tasks[following])
                            running[executor.submit(_apply, str(shared), task)] = (
                                executor,
                                following,
                            )
                        else:
                            executor.shutdown(wait=False)
                        if number is not None:
                            yield number, pickle.loads(answer)
            finally:
                for executor, _ in running.values():
                    executor.shutdown(kill_workers=True)


@functools.lru_cache(maxsize=1)
def _prepared(path: str) -> tuple[Callable[[Any, Any], Any], Any]:
    """Read what is shared, and take over the state of the process that started this one."""
    function, shared, (dtype, validation) = pickle.loads(Path(path).read_bytes())
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.distributions.Distribution.set_default_validate_args(validation)
    return function, shared


def _prepare(path: str) -> None:
    """Prepare a worker for its first task."""
    _prepared(path)


def _apply(path: str, task: bytes) -> bytes:
    """Do one task in a worker."""
    function, shared = _prepared(path)
    return pickle.dumps(function(shared, pickle.loads(task)))


def refuse_in_worker() -> None:
    """Refuse to start processes from a worker.

    Raises:
        ModelError: This process is a worker.
    """
    if _prepared.cache_info().currsize:
        raise ModelError(
            "vsbc was called by a model that another vsbc fits. Call it outside of the model."
        )


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
