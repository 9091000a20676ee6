"""Independent tasks over an executor, or in this process where that cannot be."""

from __future__ import annotations

import os
import pickle
import queue
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pyro_nfvi._error_text import first_line
from pyro_nfvi._model_lock import turn
from pyro_nfvi._processes.loky_workers import LokyWorkers
from pyro_nfvi.errors import ModelError, OptionError


class Result(Protocol):
    """A task that was submitted: a future, a job, or whatever an executor calls it."""

    def result(self) -> Any:
        """Wait for the value; raise where there is none."""


class Executor(Protocol):
    """Anything that runs functions elsewhere: of loky, Dask, submitit, mpi4py, Ray's adapters."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Result:
        """Begin ``function(*args)``."""


@dataclass(frozen=True)
class Outcome:
    """End of one task.

    Attributes:
        value: What the function returned; None if it did not.
        error: Why there is no value; empty if there is one.
        attempts: How often the task was begun.
    """

    value: Any = None
    error: str = ""
    attempts: int = 1


@dataclass
class TaskRun:
    """Runs ``function(task)`` for every task, over an executor.

    Function and tasks are pickled by ``cloudpickle``, which also takes functions of notebooks and
    closures. An exception of the function is an outcome with its reason. A task whose worker ended,
    or whose executor failed otherwise, is begun once more.

    Args:
        function: Applied to each task.
        executor: Where to; None is processes of this machine.
        num_workers: Processes where there is no executor, 1 being this process itself; with one,
            the most tasks that wait in it, all of them for None.

    Attributes:
        note: Why tasks ran in this process, if they did against the request.
    """

    function: Callable[[Any], Any]
    executor: Executor | None = None
    num_workers: int | None = None
    note: str = ""

    def run(self, tasks: Sequence[Any]) -> Generator[tuple[int, Outcome], None, None]:
        """Yield ``(number of the task, outcome)`` as they come, each number once.

        What runs is ended, or called off, when the iterator is closed.
        """
        left = list(range(len(tasks)))
        if self.executor is not None:
            yield from self._spread(self.executor, tasks, left, self.num_workers or len(tasks))
        elif (self.num_workers or 1) > 1 and self._can_be_sent(tasks[:1]):
            count = min(self.num_workers or 1, len(tasks))
            workers = LokyWorkers(count)
            try:
                if self._come_up(workers):
                    # One more than there are processes, so that none has to wait.
                    yield from self._spread(workers, tasks, left, count + 1)
            finally:
                workers.shutdown()
        for number in left:
            yield number, self._here(tasks[number])

    # ----------------------------------------------------------------------- other processes

    def _can_be_sent(self, first: Sequence[Any]) -> bool:
        try:
            for task in first:
                pickle.loads(self._payload(task))
        except Exception as error:
            self._stay(
                f"the model cannot be sent to other processes ({first_line(error)}). Keep open "
                "files, locks and generators out of it."
            )
            return False
        return True

    def _come_up(self, workers: LokyWorkers) -> bool:
        try:
            workers.submit(os.getpid).result()
        except Exception as error:
            self._stay(f"no other process could be started ({first_line(error)})")
            return False
        return True

    def _stay(self, why: str) -> None:
        self.note = f"ran in this process, one fit after the other: {why}"
        self.num_workers = 1

    def _payload(self, task: Any) -> bytes:
        import cloudpickle

        payload: bytes = cloudpickle.dumps((self.function, task, _State.now()))
        return payload

    def _spread(
        self, executor: Executor, tasks: Sequence[Any], left: list[int], most: int
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Run tasks over an executor; those that cannot be read there stay in ``left``."""
        waiting = left[::-1]
        left.clear()
        ended: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        running: dict[int, Result] = {}
        attempts = dict.fromkeys(waiting, 0)
        own = isinstance(executor, LokyWorkers)
        name = secrets.token_hex(8)
        waiter = _Waiter(ended)
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    number = waiting.pop()
                    attempts[number] += 1
                    try:
                        payload = self._payload(tasks[number])
                    except Exception as error:
                        why = f"cannot be sent to other processes: {first_line(error)}"
                        yield number, Outcome(error=why, attempts=attempts[number])
                        continue
                    try:
                        # A name of its own: Dask takes equal calls for one.
                        label = f"{name}-{number}-{attempts[number]}"
                        running[number] = executor.submit(_call, payload, label)
                    except Exception as error:  # an executor that broke, or was shut down
                        why = f"the executor takes no more tasks: {first_line(error)}"
                        yield number, Outcome(error=why, attempts=attempts[number])
                        continue
                    waiter.watch(number, running[number])
                if not running:
                    continue
                number, future = ended.get()
                if running.get(number) is not future:
                    continue
                del running[number]
                try:
                    kind, answer = future.result()
                except Exception as error:
                    if attempts[number] < 2:
                        waiting.append(number)
                        continue
                    why = str(error) if own else f"its worker failed: {first_line(error)}"
                    yield number, Outcome(error=why, attempts=attempts[number])
                    continue
                if kind == _UNREADABLE and own:
                    self._stay(f"the model cannot be read in other processes ({answer})")
                    left.append(number)
                elif kind == _DONE:
                    yield number, Outcome(pickle.loads(answer), attempts=attempts[number])
                else:
                    yield number, Outcome(error=answer, attempts=attempts[number])
        finally:
            for future in running.values():
                cancel = getattr(future, "cancel", None)
                if callable(cancel):
                    with suppress(Exception):
                        cancel()

    # -------------------------------------------------------------------------- this process

    def _here(self, task: Any) -> Outcome:
        """Run a task here, on a copy where it can be copied, as other processes have it."""
        try:
            function, task, _ = pickle.loads(self._payload(task))
        except Exception:
            function = self.function
        try:
            with _State.now().put():
                return Outcome(function(task))
        except (Exception, SystemExit) as error:
            return Outcome(error=first_line(error))


class _Waiter:
    """Puts futures into a queue when they end: by their callbacks, else by a thread that waits."""

    def __init__(self, ended: queue.SimpleQueue[tuple[int, Result]]) -> None:
        self._ended = ended
        self._asked: queue.SimpleQueue[tuple[int, Result]] | None = None

    def watch(self, number: int, future: Result) -> None:
        add = getattr(future, "add_done_callback", None)
        if callable(add):
            add(lambda *_: self._ended.put((number, future)))
            return
        if self._asked is None:
            self._asked = queue.SimpleQueue()
            threading.Thread(target=self._wait, name="results", daemon=True).start()
        self._asked.put((number, future))

    def _wait(self) -> None:
        assert self._asked is not None
        while True:
            number, future = self._asked.get()
            with suppress(BaseException):  # it is raised where the result is read
                future.result()
            self._ended.put((number, future))


_DONE, _RAISED, _UNREADABLE = "done", "raised", "unreadable"


def _call(payload: bytes, _: str) -> tuple[str, Any]:
    """Do one task where an executor has brought it."""
    try:
        function, task, state = pickle.loads(payload)
    except Exception as error:
        return _UNREADABLE, f"it cannot be read in the worker: {first_line(error)}"
    try:
        with state.put():
            return _DONE, pickle.dumps(function(task))
    except (Exception, SystemExit) as error:
        return _RAISED, first_line(error)


_INSIDE = threading.local()


@dataclass(frozen=True)
class _State:
    """State of the process that asks, which tasks are to find in theirs."""

    dtype: torch.dtype
    validation: bool

    @staticmethod
    def now() -> _State:
        return _State(
            torch.get_default_dtype(), bool(torch.distributions.Distribution._validate_args)
        )

    @contextmanager
    def put(self) -> Iterator[None]:
        """Compute in this state, on one thread so that sums round alike; then as before."""
        validate = torch.distributions.Distribution.set_default_validate_args
        with turn():
            before, threads = _State.now(), torch.get_num_threads()
            depth = getattr(_INSIDE, "depth", 0)
            try:
                torch.set_num_threads(1)
                torch.set_default_dtype(self.dtype)
                validate(self.validation)
                _INSIDE.depth = depth + 1
                yield
            finally:
                _INSIDE.depth = depth
                validate(before.validation)
                torch.set_default_dtype(before.dtype)
                torch.set_num_threads(threads)


def inside_task() -> bool:
    """Tell whether this thread does a task."""
    return bool(getattr(_INSIDE, "depth", 0))


def refuse_inside(name: str) -> None:
    """Refuse to begin many tasks from inside of one.

    Raises:
        ModelError: A task is running in this thread.
    """
    if inside_task():
        raise ModelError(
            f"{name} was called by a model that is being fitted by one of many fits. Call it "
            "outside of the model."
        )


def check_executor(executor: Any) -> None:
    """Refuse what is no executor.

    Raises:
        OptionError: It has no ``submit``, or is a class.
    """
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise OptionError(
            "executor is an object with submit(function, *args), whose results have .result(): an "
            "executor of loky, a Dask Client, a submitit executor, an MPIPoolExecutor; got "
            f"{executor!r}."
        )
