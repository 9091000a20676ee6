"""Units of compilation: what is compiled apart, and what a cold process need not import."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._engine.native import runner
from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._optim.torch_optimizers import LBFGS, Adam


def _has_compiler() -> bool:
    try:
        find_compiler()
    except Unsupported:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler")


def normal(dim):
    def model():
        x = pyro.sample("x", dist.Normal(torch.ones(dim), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(0.0))

    return model


@needs_compiler
def test_the_loop_over_steps_is_compiled_once_for_all_models(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []
    real = runner.compile_text

    def counted(text, symbols, *rest):
        data, cached = real(text, symbols, *rest)
        built.append((symbols, cached))
        return data, cached

    monkeypatch.setattr(runner, "compile_text", counted)
    for dim in (2, 3):
        NFVI(
            normal(dim), "affine", max_steps=20, stop=False, precondition=False,
            engine="compiled", seed=0, progress=False,
        ).run()  # fmt: skip
    loops = [cached for symbols, cached in built if "nfvi_run" in symbols]
    steps = [cached for symbols, cached in built if "nfvi_step" in symbols]
    assert loops == [False, True]
    assert steps == [False, False]


@needs_compiler
def test_a_fit_imports_neither_the_compiler_of_torch_nor_sympy():
    # More than a second of processor time, in every process.
    code = """
    import sys
    import pyro, torch
    import pyro.distributions as dist
    from pyro_nfvi import NFVI

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 4):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 10.0), obs=y)

    fit = NFVI(model, "iaf*2", max_steps=600, seed=0, progress=False).run(torch.arange(4.0))
    print(fit.engine, *(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["compiled"], done.stdout + done.stderr


@pytest.mark.parametrize("fused", [False, True])
def test_our_adam_takes_the_steps_of_torch(fused):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    ends = []
    for kind in (Adam, torch.optim.Adam):
        x = start.clone().requires_grad_()
        optimizer = kind([{"params": [x], "lr": 0.1}], weight_decay=0.01, fused=fused)
        for _ in range(5):
            optimizer.zero_grad()
            (x**4).sum().backward()
            optimizer.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        ends.append((x.detach(), saved["state"][0]["exp_avg_sq"]))
    assert all(torch.equal(one, other) for one, other in zip(*ends))


def test_our_lbfgs_takes_the_steps_of_torch():
    ends = []
    for kind in (LBFGS, torch.optim.LBFGS):
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        optimizer = kind([x], max_iter=8, line_search_fn="strong_wolfe")

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (x**4).sum() + (x[0] - x[1]) ** 2
            loss.backward()
            return loss

        optimizer.step(closure)
        ends.append(x.detach())
    assert torch.equal(*ends)
