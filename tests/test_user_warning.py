"""A warning names the line of the user who called, not one of the package."""

from __future__ import annotations

import ast
import contextlib
import functools
import threading
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import pyro_nfvi as nfvi
from pyro_nfvi import AutoFlow, FlowDensity, to_arviz
from pyro_nfvi._user_warning import warn
from pyro_nfvi.flows import make_flow

PACKAGE = Path(nfvi.__file__).parent
Y = torch.tensor([0.3, 1.2, 0.7])
QUICK = {"guide": "affine", "max_steps": 5, "seed": 0, "progress": False, "engine": "eager"}
DENSITY = {"max_steps": 1, "seed": 0, "progress": False}


def model(y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scaled(y):
    with pyro.poutine.scale(scale=0.5):
        model(y)


def unobserved():
    pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))


def independent(y):
    pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=y)


def improper(y):
    pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    model(y)


def rows():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


def load_with_other_data(folder):
    nfvi.NFVI(model, **QUICK).run(Y).save(folder / "fit.pt")
    nfvi.load(folder / "fit.pt", model=model, args=(Y + 1,))


def far_context(folder):
    density = FlowDensity(make_flow("affine", 2, context_dim=1))
    density.fit(rows(), 1e4 + rows()[:, :1], **DENSITY)


def by_steps_of_pyro(folder):
    start = functools.partial(AutoFlow, init_loc_fn=lambda site: torch.tensor(float("nan")))
    SVI(model, start(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(Y)


CALLS = {
    "run: nothing observed": lambda folder: nfvi.NFVI(unobserved, **QUICK).run(),
    "run: no dependence": lambda folder: nfvi.NFVI(independent, **QUICK).run(Y),
    "run: improper": lambda folder: nfvi.NFVI(improper, **QUICK | {"max_steps": 150}).run(Y),
    "run: no checkpoint": lambda folder: nfvi.NFVI(
        model, checkpoint=folder / "none" / "x", **QUICK
    ).run(Y),
    "load": load_with_other_data,
    "flow": lambda folder: make_flow("iaf", 300, hidden_dim=8000),
    "fit: scale": lambda folder: FlowDensity(make_flow("affine", 2)).fit(1e4 + rows(), **DENSITY),
    "fit: ties": lambda folder: FlowDensity(make_flow("affine", 2)).fit(rows().round(), **DENSITY),
    "fit: context": far_context,
    "to_arviz": lambda folder: to_arviz(AutoFlow(model).setup(Y), num_samples=5),
    "to_arviz: scale": lambda folder: to_arviz(AutoFlow(scaled).setup(Y), args=(Y,), num_samples=5),
    "a step of Pyro": by_steps_of_pyro,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_warning_names_the_calling_file(call, tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        CALLS[call](tmp_path)
    ours = [one for one in told if "torch.jit" not in str(one.message)]
    assert ours
    assert {one.filename for one in ours} == {__file__}


def test_every_warning_goes_through_the_one_helper():
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"warnings.warn", "warnings.warn_explicit"}
    ]
    assert [one.split(":")[0] for one in found] == ["_user_warning.py"]


def as_module(name, filename, body):
    """Return ``f`` of a module of that name: ``f(then)`` does what the body says."""
    names = {"__name__": name, "warn": warn, "contextlib": contextlib}
    exec(compile(body, filename, "exec"), names)
    return names["f"]


PASS_ON = "def f(then):\n    return then()"


@pytest.mark.parametrize(
    ("name", "filename", "is_user"),
    [
        ("pyro_nfvi.flows", "flows.py", False),
        ("pyro_nfvi.flows", "<string>", False),
        ("torch.nn.modules.module", "module.py", False),
        ("pyro.infer.svi", "svi.py", False),
        ("functools", "functools.py", False),
        ("pyro_nfvi.flows", "<doctest pyro_nfvi.flows[0]>", True),
        ("pyro_nfvi_extras", "extras.py", True),
        ("pyroclastic", "rocks.py", True),
        ("__main__", "<stdin>", True),
    ],
)
def test_lines_that_are_a_users(name, filename, is_user):
    between = as_module(name, filename, PASS_ON)
    inside = as_module("pyro_nfvi.deep", "deep.py", "def f():\n    warn('told')")
    with pytest.warns(UserWarning, match="told") as told:
        between(inside)
    assert told[0].filename == (filename if is_user else __file__)


def test_a_warning_of_a_thread_of_the_package_is_told():
    inside = as_module("pyro_nfvi.deep", "deep.py", "def f():\n    warn('told')")
    thread = threading.Thread(target=inside)

    def run():
        thread.start()
        thread.join()

    with pytest.warns(UserWarning, match="told"):
        run()


def test_a_line_is_told_once_by_default():
    inside = as_module("pyro_nfvi.deep", "deep.py", "def f():\n    warn('told')")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            inside()
        inside()
    assert len(told) == 2
