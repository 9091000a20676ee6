"""Fits that something breaks off at any call of the model: the process is as it was before."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import on

import pyro_nfvi as nfvi
from pyro_nfvi._model_lock import turn
from pyro_nfvi._random import fold_in
from pyro_nfvi.errors import NFVIError

Y = torch.tensor([1.0, 2.0, 4.0])


class Odd(BaseException):
    """An exception that nothing expects."""


ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, StopIteration, RecursionError, MemoryError,
    torch.linalg.LinAlgError, KeyboardInterrupt, SystemExit, GeneratorExit, Odd,
)  # fmt: skip


class Breaks:
    """A model that raises, or gives NaN, at one of its calls."""

    def __init__(self, error, at):
        self.error, self.at, self.calls = error, at, 0

    def __call__(self, y):
        self.calls += 1
        off = pyro.param("off", torch.tensor(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        if self.calls == self.at:
            if self.error is not None:
                raise self.error("in the middle")
            mu = mu * torch.nan
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + off, 1.0, validate_args=False), obs=y)


def free():
    """Whether another thread could take its turn."""
    taken = []

    def take():
        with turn():
            taken.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(30)
    return bool(taken)


def state(folder):
    return {
        "params": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "random": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "validation": torch.distributions.Distribution._validate_args,
        "settings": pyro.settings.get(),
        "dtype": torch.get_default_dtype(),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "gradients": torch.is_grad_enabled(),
        "threads": threading.active_count(),
        "cores": torch.get_num_threads(),
        "mode": torch.utils._python_dispatch._get_current_dispatch_mode(),
        "files": sorted(os.listdir(folder)),
        "turn": free(),
    }


def run(model, engine):
    options = {"max_steps": 60, "seed": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return on(nfvi.NFVI(model, "affine", **options), engine).run(Y)


def check(error, at, engine, folder):
    before = state(folder)
    expected = NFVIError if error is None else (NFVIError, error)
    with contextlib.suppress(expected):
        run(Breaks(error, at), engine)
    assert state(folder) == before, (error, at, engine)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A process with a parameter of its own, and a folder for its temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.tensor(3.0))
        run(Breaks(None, -1), "eager")  # what is imported and kept once
        yield tmp_path


def test_a_fit_that_breaks_off_leaves_the_process_as_it_was(folder):
    for error, at in ((Odd, 2), (None, 9), (MemoryError, 30), (KeyboardInterrupt, 60)):
        check(error, at, "eager", folder)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_at_any_call_with_any_error(folder, engine):
    count = Breaks(None, -1)
    run(count, engine)
    draw = random.Random(fold_in(0, "interrupted", engine))
    for error in (*ERRORS, None):
        for last in (30, count.calls):
            check(error, draw.randrange(1, last + 1), engine, folder)
