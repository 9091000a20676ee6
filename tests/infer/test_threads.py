"""One turn for all that runs a model: threads that use the package at once, and forks meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_median
from pyro.nn import PyroModule, PyroParam, PyroSample

import pyro_nfvi as nfvi
from pyro_nfvi import AutoPlanar
from pyro_nfvi._model_lock import turn

Y = torch.tensor([1.0, 2.0, 4.0])


class Line(PyroModule):
    """Values that Pyro keeps for the time of a call, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.mu = PyroSample(dist.Normal(0.0, 10.0))
        self.scale = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)

    def forward(self, y):
        mean = pyro.deterministic("mean", 2 * self.mu)
        off = pyro.param("off", torch.tensor(0.5))
        with pyro.plate("rows", len(y)):
            return pyro.sample("y", dist.Normal(mean + off, self.scale), obs=y)


def plain(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fit(seed=0, **options):
    given = {"max_steps": 40, "explore": "off", "engine": "eager", "precondition": False}
    options = given | options
    return nfvi.NFVI(Line(), "planar*2", seed=seed, progress=False, **options).run(Y)


def numbers(found):
    return [found.elbo, *(float(value) for value in found.params.values())]


def free_of_fits():
    """What has to be so where no fit is under way."""
    assert not pyro.poutine.runtime._PYRO_STACK
    assert not pyro.get_param_store().keys()


@pytest.fixture(scope="module")
def once():
    with pyro.get_param_store().scope():
        return fit()


@pytest.fixture
def done(once):
    with pyro.get_param_store().scope():
        yield once


#: Everything that runs a model, or reads a guide through Pyro.
def calls(done, path):
    def guide():
        guide = AutoPlanar(plain, 2, init_loc_fn=init_to_median)
        return guide.setup(Y)

    return {
        "fit": lambda: fit(1, precondition=True),
        "sample": lambda: done.sample(20, seed=0),
        "resample": lambda: done.resample(20, seed=0),
        "summary": done.summary,
        "log_prob": lambda: done.log_prob(done.sample(3, seed=0)),
        "to_arviz": lambda: nfvi.to_arviz(done, num_samples=20),
        "to_nuts": lambda: done.to_nuts(
            num_samples=4, warmup_steps=4, num_chains=1, seed=0, progress=False
        ),
        "load": lambda: nfvi.load(path),
        "load with model": lambda: nfvi.load(path, model=Line(), args=(Y,)),
        "setup": guide,
        "posterior": lambda: guide().sample_posterior(5, Y, deterministic=True),
        "call": lambda: guide()(Y),
        "quantiles": lambda: guide().quantiles([0.5]),
        "mean": lambda: guide().mean(),
    }  # fmt: skip


@pytest.mark.slow
def test_all_that_runs_a_model_may_run_while_others_fit(done, tmp_path):
    path = tmp_path / "fit.nfvi"
    done.save(path)
    expected = numbers(done)
    tasks = calls(done, path)
    tasks |= {f"fit {k}": fit for k in range(3)}
    results, errors = {}, {}
    gate = threading.Barrier(len(tasks))

    def work(name, task):
        gate.wait()
        try:
            results[name] = task()
        except BaseException:
            errors[name] = traceback.format_exc()

    threads = [threading.Thread(target=work, args=one) for one in tasks.items()]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors, "\n".join(errors.values())
    for k in range(3):
        assert numbers(results[f"fit {k}"]) == expected  # nobody took a number of its noise
    assert torch.equal(results["sample"]["mu"], done.sample(20, seed=0)["mu"])
    assert results["load"].elbo == done.elbo
    assert not pyro.poutine.runtime._PYRO_STACK
    assert {name.split(".")[0] for name in pyro.get_param_store()} == {"AutoPlanar"}


class _Fitting:
    """A thread that fits, stopped in the middle of a step until told to go on."""

    def __init__(self, **options):
        self.inside, self.go_on, self.found = threading.Event(), threading.Event(), []

        def wait(info):
            if info.step == 5:
                self.inside.set()
                assert self.go_on.wait(60)

        def work():
            self.found.append(fit(callbacks=[wait], **options))

        self.thread = threading.Thread(target=work)

    def __enter__(self):
        self.thread.start()
        assert self.inside.wait(60)
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self.thread.join()


def _in_child(expected):
    free_of_fits()
    assert numbers(fit()) == pytest.approx(expected, rel=1e-4)
    with turn():
        assert torch.get_num_threads() == 1
    free_of_fits()


def _wait(pid, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def _fork(task, *args):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            task(*args)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "how", ["os.fork", pytest.param("multiprocessing", marks=pytest.mark.slow)]
)
def test_a_child_forked_while_a_thread_fits_can_fit(done, how):
    expected = numbers(done)
    state = torch.get_rng_state()
    with _Fitting() as other:
        if how == "os.fork":
            assert _wait(_fork(_in_child, expected)) == 0
        else:
            process = multiprocessing.get_context("fork").Process(
                target=_in_child, args=(expected,)
            )
            process.start()
            process.join(60)
            assert process.exitcode == 0
    assert numbers(other.found[0]) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_random_state_of_a_child_is_the_one_before_the_fit():
    torch.manual_seed(5)
    expected = torch.get_rng_state()

    def look():
        assert torch.equal(torch.get_rng_state(), expected)

    with _Fitting():
        assert _wait(_fork(look)) == 0


def test_a_fork_inside_of_a_turn_goes_on_with_it():
    def child():
        with turn():  # taken again, by the thread that has it
            pass

    with turn():
        pid = os.fork()
        if not pid:
            try:
                child()
            except BaseException:
                os._exit(1)
    if not pid:  # gave the turn back, as the parent did
        ends = []
        thread = threading.Thread(target=lambda: [child(), ends.append(1)])
        thread.start()
        thread.join(10)
        os._exit(0 if ends else 1)
    assert _wait(pid) == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError,
        pytest.param(KeyboardInterrupt, marks=pytest.mark.slow),
        pytest.param(SystemExit, marks=pytest.mark.slow),
    ],
)
def test_a_thread_that_dies_gives_its_turn_back(done, error):
    def fail(info):
        raise error("in the middle")

    def work():
        with contextlib.suppress(error):  # Ctrl-C ends a fit with a result
            fit(callbacks=[fail])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert numbers(fit()) == numbers(done)
    free_of_fits()
