"""Tasks over executors: nothing is lost, a dead worker costs one more attempt, state comes back."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
import torch

from pyro_nfvi._processes import tasks as tasks_module
from pyro_nfvi._processes.tasks import Outcome, TaskRun, check_executor
from pyro_nfvi.errors import OptionError


def halved(number):
    if number % 2:
        raise ArithmeticError(f"{number} is odd\nand more")
    return number // 2


class Job:
    """A result without callbacks, as of submitit."""

    def __init__(self, function, args):
        self.function, self.args = function, args

    def result(self):
        return self.function(*self.args)


class Plain:
    """The least that an executor can be."""

    def __init__(self):
        self.labels = []

    def submit(self, function, *args):
        self.labels.append(args[-1])
        return Job(function, args)


class Dying(Plain):
    """Loses the worker of some tasks, again and again or once."""

    def __init__(self, tasks, times):
        super().__init__()
        self.deaths = dict.fromkeys(tasks, times)

    def submit(self, function, *args):
        task = int(args[-1].split("-")[1])
        if self.deaths.get(task, 0):
            self.deaths[task] -= 1
            return Job(self._die, ())
        return super().submit(function, *args)

    @staticmethod
    def _die():
        raise ConnectionError("the worker is gone")


class Broken(Plain):
    """Takes no more tasks after some."""

    def submit(self, function, *args):
        if len(self.labels) == 2:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return super().submit(function, *args)


EXECUTORS = {
    "here": lambda: None,
    "plain": Plain,
    "threads": lambda: ThreadPoolExecutor(2),
    "loses two once": lambda: Dying([0, 2], 1),
}


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("most", [None, 1])
def test_every_task_has_one_outcome(name, most):
    found = list(TaskRun(halved, EXECUTORS[name](), most).run([0, 1, 2, 3, 4]))
    assert sorted(number for number, _ in found) == [0, 1, 2, 3, 4]
    outcomes = dict(found)
    assert [outcomes[n].value for n in (0, 2, 4)] == [0, 1, 2]
    assert {outcomes[n].error for n in (1, 3)} == {
        "ArithmeticError: 1 is odd", "ArithmeticError: 3 is odd",
    }  # fmt: skip


def test_a_dead_worker_costs_one_attempt_more():
    outcomes = dict(TaskRun(halved, Dying([2], 1)).run([0, 2, 4]))
    assert outcomes == {n: Outcome(n, attempts=1) for n in (0, 1)} | {2: Outcome(2, attempts=2)}


def test_a_task_whose_worker_dies_again_is_told_and_the_others_go_on():
    executor = Dying([1], 5)
    outcomes = dict(TaskRun(halved, executor).run([0, 2, 4]))
    assert outcomes[1].error == "its worker failed: ConnectionError: the worker is gone"
    assert outcomes[1].attempts == 2
    assert executor.deaths[1] == 3
    assert (outcomes[0].value, outcomes[2].value) == (0, 2)


def test_every_attempt_has_a_name_of_its_own():
    # Dask takes calls with equal arguments for one, and would bring the failure again.
    executor = Plain()
    for _ in range(2):
        list(TaskRun(halved, executor).run([0, 0]))
    assert len(set(executor.labels)) == 4


def test_a_model_that_leaves_python_is_told():
    for executor in (None, Plain()):
        assert dict(TaskRun(sys.exit, executor).run([3]))[0].error == "SystemExit: 3"


def test_an_executor_that_breaks_loses_nothing_that_is_done():
    outcomes = dict(TaskRun(halved, Broken()).run([0, 2, 4, 6]))
    assert sorted(n for n, one in outcomes.items() if not one.error) == [0, 1]
    assert "the executor takes no more tasks: RuntimeError" in outcomes[3].error


def test_what_cannot_be_sent_is_told():
    lock = threading.Lock()
    outcomes = dict(TaskRun(str, Plain()).run([1, lock]))
    assert outcomes[0].value == "1"
    assert "cannot be sent to other processes: TypeError" in outcomes[1].error
    run = TaskRun(lambda _: lock.locked(), None, 2)
    assert dict(run.run([0]))[0].value is False
    assert "ran in this process" in run.note


def test_tasks_have_the_state_of_the_asker_and_give_it_back():
    def state(_):
        return torch.get_default_dtype(), torch.get_num_threads()

    before = state(0)
    with ThreadPoolExecutor(1) as executor:
        torch.set_default_dtype(torch.float64)
        try:
            payload = TaskRun(state)._payload(0)
        finally:
            torch.set_default_dtype(torch.float32)
        kind, answer = executor.submit(tasks_module._call, payload, "").result()
    assert (kind, tasks_module.pickle.loads(answer)) == ("done", (torch.float64, 1))
    assert state(0) == before


def test_closing_calls_off_what_waits():
    class Slow:
        def __init__(self):
            self.futures = []

        def submit(self, function, *args):
            future = Future()
            if not self.futures:
                future.set_result(function(*args))
            self.futures.append(future)
            return future

    executor = Slow()
    results = TaskRun(halved, executor).run([0, 2, 4])
    assert next(results) == (0, Outcome(0))
    results.close()
    assert [future.cancelled() for future in executor.futures] == [False, True, True]


def test_a_cancelled_task_is_tried_once_more():
    class Cancelling(Plain):
        def submit(self, function, *args):
            if not self.labels:
                self.labels.append("")
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
                return future
            return super().submit(function, *args)

    assert issubclass(CancelledError, Exception)
    assert dict(TaskRun(halved, Cancelling()).run([4]))[0] == Outcome(2, attempts=2)


@pytest.mark.parametrize("wrong", [3, "threads", ThreadPoolExecutor, object()])
def test_what_is_no_executor(wrong):
    with pytest.raises(OptionError, match=r"submit\(function, \*args\)"):
        check_executor(wrong)


# ------------------------------------------------------------------------- processes of loky


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_replaced(tmp_path):
    def deadly(task):
        number, once = task
        if number == 1 and not (once and os.path.exists(once)):
            if once:
                open(once, "w").close()
            os._exit(9)
        return 2 * number

    run = TaskRun(deadly, None, 2)
    outcomes = dict(run.run([(n, None) for n in range(4)]))
    died = outcomes.pop(1)
    assert died.error == "its process ended with code 9: killed, or out of memory"
    assert died.attempts == 2
    assert {n: one.value for n, one in outcomes.items()} == {0: 0, 2: 4, 3: 6}
    once = dict(run.run([(n, str(tmp_path / "died")) for n in range(3)]))
    assert once[1] == Outcome(2, attempts=2)
    assert run.note == ""


@pytest.mark.slow
def test_closures_run_in_processes_on_one_thread_each():
    factor = 3
    run = TaskRun(lambda n: (factor * n, os.getpid(), torch.get_num_threads()), None, 2)
    outcomes = dict(run.run([0, 1, 2]))
    found = [outcomes[n].value for n in range(3)]
    assert [one[0] for one in found] == [0, 3, 6]
    assert {one[2] for one in found} == {1}
    assert os.getpid() not in {one[1] for one in found}
    assert run.note == ""
