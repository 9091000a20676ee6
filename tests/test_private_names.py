"""A PyTorch without one of the private names that the package looks up: slower, and it says so."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.test_engine_selection import fit

import pyro_nfvi
from pyro_nfvi import _chain_rule as chain_rule
from pyro_nfvi import _compat
from pyro_nfvi._chain_rule import find_singularity, score

PACKAGE = Path(pyro_nfvi.__file__).parent
NAMES = sorted(_compat._PRIVATE)
RULE = list(chain_rule._NEEDED)


def hill(z):
    """``(x / c) ** h`` at x = 0 and 1: its derivative in c is 0 at x = 0, and NaN by autograd."""
    x = torch.tensor([0.0, 1.0])
    return ((x / z[:, :1]) ** z[:, 1:]).sum(-1)


POINT = torch.tensor([[2.0, 0.5]])


def test_private_names_are_looked_up_in_one_place():
    found = []
    for path in set(PACKAGE.rglob("*.py")) - {Path(_compat.__file__)}:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                named = [f"{node.module}.{one.name}" for one in node.names]
            else:
                named = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
            private = (".torch.utils._python_dispatch", ".torch._C", ".torch._functorch")
            if any(f".{name}".startswith(private) for name in named):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("gone", RULE)
def test_without_the_rule_gradients_are_those_of_autograd(monkeypatch, gone):
    right = score(hill, POINT)[1]
    monkeypatch.setitem(_compat._PRIVATE, gone, None)
    assert torch.equal(score(hill, torch.ones(1, 2))[0], hill(torch.ones(1, 2)))
    with pytest.warns(RuntimeWarning, match=f"PyTorch .* has no {gone}"):
        plain = score(hill, POINT)[1]
    assert bool(right.isfinite().all())
    assert not bool(plain.isfinite().all())
    z = POINT.clone().requires_grad_()
    assert "does not name" in str(find_singularity(hill(z).sum(), [z]))
    assert find_singularity(z.sum(), [z]) is None


@pytest.mark.slow
def test_a_torch_without_a_private_name_fits(monkeypatch):
    expected = fit("schools", engine="eager", max_steps=5)
    for gone in NAMES:
        with monkeypatch.context() as without:
            without.setitem(_compat._PRIVATE, gone, None)
            found = fit("schools", engine="eager", max_steps=5)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-5)


SCRIPT = """
import sys, torch, torch.utils._python_dispatch as dispatch
name = sys.argv[1]
owner = next(x for x in (dispatch, torch._C, torch._C._functorch) if hasattr(x, name))
real, calls = getattr(owner, name), []
import pyro, torch.func, torch._dynamo  # what torch imports of its own comes first
delattr(owner, name)
import pyro_nfvi.infer._run_fit  # and all that a fit loads
setattr(owner, name, real)  # torch's own needs it
import pyro.distributions as dist
y = torch.tensor([1.0, 2.0, 3.0])
def model():
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)
fit = pyro_nfvi.NFVI(model, "planar*2", seed=0, max_steps=600, progress=False).run()
print(abs(float(fit.summary()["mu"].mean) - 1.974) < 0.1, fit.engine, "|", fit.engine_reason)
"""


@pytest.mark.slow
@pytest.mark.parametrize("gone", NAMES)
def test_the_package_is_imported_without_a_private_name(gone):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, gone],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")
    if gone in ("TorchDispatchMode", "_disable_current_modes"):
        assert f"has no {gone}" in done.stdout
