"""Keys by content: what changes a result changes the key, and nothing else does."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nfvi._files.content_key import NoKey, content_key


def model_with(scale, body=0.0):
    def prior():
        return dist.Normal(0.0, scale)

    def model(y):
        mu = pyro.sample("mu", prior())
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu + body, 1.0), obs=y)

    return model


@dataclass
class Setting:
    width: int
    table: torch.Tensor


class Counter(pyro.nn.PyroModule):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x):
        return self.weight * x


class Other(Counter):
    def forward(self, x):
        return self.weight + x


def decorated(function, extra):
    @functools.wraps(function)
    def inside(*args):
        return function(*args), extra

    return inside


#: Pairs of makers: each makes equal things every time, and the two differ.
PAIRS = {
    "numbers": (lambda: 1, lambda: 1.0),
    "truth": (lambda: 1, lambda: True),
    "text and bytes": (lambda: "a", lambda: b"a"),
    "nesting": (lambda: [[1], 2], lambda: [1, [2]]),
    "joined words": (lambda: ["ab", "c"], lambda: ["a", "bc"]),
    "tensors": (lambda: torch.ones(2), lambda: torch.tensor([1.0, 1.0 + 2**-23])),
    "shapes": (lambda: torch.ones(2, 3), lambda: torch.ones(3, 2)),
    "dtypes": (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.int32)),
    "array or tensor": (lambda: np.ones(2), lambda: torch.ones(2, dtype=torch.float64)),
    "sets": (lambda: {"a", "b", "c"}, lambda: {"a", "b"}),
    "enclosed": (lambda: model_with(1.0), lambda: model_with(2.0)),
    "enclosed tensors": (
        lambda: model_with(1.0, torch.ones(1)), lambda: model_with(1.0, torch.zeros(1)),
    ),
    "handlers": (
        lambda: poutine.condition(model_with(1.0), data={"mu": torch.tensor(1.0)}),
        lambda: poutine.condition(model_with(1.0), data={"mu": torch.tensor(2.0)}),
    ),
    "partial": (
        lambda: functools.partial(model_with, 1.0), lambda: functools.partial(model_with, 2.0),
    ),
    "decorators": (lambda: decorated(len, 1), lambda: decorated(len, 2)),
    "decorated": (lambda: decorated(model_with(1.0), 1), lambda: decorated(model_with(2.0), 1)),
    "under a borrowed name": (
        lambda: functools.wraps(torch.relu)(lambda x: x + 1),
        lambda: functools.wraps(torch.relu)(lambda x: x - 1),
    ),
    "wrapped by others": (
        lambda: functools.lru_cache(model_with(1.0)), lambda: functools.lru_cache(model_with(2.0)),
    ),
    "context managers": (
        lambda: contextmanager(decorated(len, 1)), lambda: contextmanager(decorated(len, 2)),
    ),
    "defaults": (lambda: lambda x=1: x, lambda: lambda x=2: x),
    "code": (lambda: lambda x: x + 1, lambda: lambda x: x - 1),
    "objects": (
        lambda: Setting(1, torch.zeros(1)), lambda: Setting(1, torch.ones(1)),
    ),
    "modules": (lambda: Counter(2), lambda: Counter(3)),
    "classes": (lambda: Counter(2), lambda: Other(2)),
    "distributions": (lambda: dist.Normal(0.0, 1.0), lambda: dist.Normal(0.0, 2.0)),
    "installed functions": (lambda: torch.relu, lambda: torch.tanh),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_has_other_keys_and_what_does_not_has_the_same(name):
    one, other = PAIRS[name]
    assert content_key(one()) == content_key(one())
    assert content_key(other()) == content_key(other())
    assert content_key(one()) != content_key(other())
    assert len(content_key(one())) == 32


def test_a_global_that_the_model_names_counts():
    scope = {"pyro": pyro, "dist": dist, "__name__": "__main__"}
    exec("width = 1.0\ndef model():\n    pyro.sample('x', dist.Normal(0.0, width))", scope)
    first = content_key(scope["model"])
    scope["unrelated"] = 3
    assert content_key(scope["model"]) == first
    scope["width"] = 2.0
    assert content_key(scope["model"]) != first


def test_functions_that_name_each_other_end():
    scope = {"__name__": "__main__"}
    exec("def f(n):\n    return g(n)\ndef g(n):\n    return f(n)", scope)
    looped = [1]
    looped.append(looped)
    assert content_key(scope["f"]) == content_key(scope["f"])
    assert content_key(looped) == content_key(looped)


def test_a_key_does_not_depend_on_pickling_or_on_a_call_before():
    model = model_with(1.0, torch.ones(1))
    assert content_key(pickle.loads(cloudpickle.dumps(model))) == content_key(model)
    module = Counter(2)
    key = content_key(module)
    module(torch.ones(2))
    assert content_key(module) == key


@pytest.mark.slow
def test_the_same_in_another_process():
    code = "import torch\nfrom pyro_nfvi._files.content_key import content_key\n"
    code += "f = lambda s: {'a', 'b', s}\nprint(content_key([f, {'x', 'y', 'z'}, torch.ones(2)]))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "wrong", [threading.Lock(), sys.stdout, (n for n in range(2)), torch.ones(2).to_sparse()]
)
def test_what_has_no_content_is_told(wrong):
    with pytest.raises(NoKey):
        content_key({"inside": [wrong]})
