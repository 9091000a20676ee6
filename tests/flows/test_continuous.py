"""Continuous flows: order of the method, solvers, traces, and errors."""

from __future__ import annotations

import sys

import pytest
import torch

from pyro_nfvi.errors import MissingPackageError, OptionError
from pyro_nfvi.flows import Continuous
from pyro_nfvi.testing._case import perturb


def far(dim=2, context_dim=0, **options):
    torch.manual_seed(1)
    flow = Continuous(dim, context_dim, **{"hidden_dim": 16, **options}).double()
    return perturb(flow, 1.0, torch.Generator().manual_seed(0))


def error(steps):
    """Largest error of points and log-determinants against many steps."""
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, found = far(steps=256)(x), far(steps=steps)(x)
    return max((a - b).abs().max().item() for a, b in zip(exact, found))


def test_error_is_what_the_docstring_says_and_of_order_four():
    errors = [error(steps) for steps in (8, 16, 32)]
    assert errors[1] < 1e-4
    assert 10 < errors[0] / errors[1] < 26
    assert 10 < errors[1] / errors[2] < 26


def test_log_determinant_is_that_of_the_jacobian():
    flow = far(dim=3, context_dim=2, steps=100)
    x, context = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda p: flow(p, context)[0], x)
    _, ladj = flow(x, context)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1], rtol=1e-7, atol=1e-7)
    back, back_ladj = flow.inverse(flow(x, context)[0], context)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back_ladj, -ladj, rtol=1e-7, atol=1e-7)


def test_adaptive_solver_agrees_within_its_tolerance():
    pytest.importorskip("torchdiffeq")
    x = torch.randn(20, 2, dtype=torch.float64)
    expected = far(steps=256)(x)
    for tolerance in (1e-4, 1e-8):
        flow = far(solver="dopri5", tolerance=tolerance)
        for got, reference in zip(flow(x), expected):
            assert (got - reference).abs().max() < 10 * tolerance
        back, _ = flow.inverse(flow(x)[0])
        assert (back - x).abs().max() < 100 * tolerance
    loss = flow(x)[1].sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(flow.parameters())))


@pytest.mark.stat
def test_hutchinson_is_unbiased_and_exact_in_eval_mode():
    exact, noisy = far(dim=4, trace="exact", steps=8), far(dim=4, trace="hutchinson", steps=8)
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        expected = exact(x)[1]
        found = noisy(x.expand(20_000, 4))[1]
        mean, sd = found.mean(), found.std() / 20_000**0.5
        assert found.std() > 0.01
        # Five standard errors: false-alarm rate 6e-7.
        assert abs(mean - expected) < 5 * sd
        torch.testing.assert_close(noisy.eval()(x)[1], expected)


def test_trace_is_exact_up_to_ten_dimensions_and_estimated_above():
    for dim, same in ((10, True), (11, False)):
        flow, x = far(dim, steps=2), torch.randn(5, dim, dtype=torch.float64)
        assert torch.equal(flow(x)[1], flow(x)[1]) == same


def test_missing_solver_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingPackageError, match=r"pyro-nfvi\[ode\]"):
        Continuous(2, solver="dopri5")
    Continuous(2)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "euler"},
        {"trace": "none"},
        {"steps": 0},
        {"steps": True},
        {"tolerance": 0.0},
        {"hidden_dim": 0},
    ],
)
def test_mistakes_are_named(options):
    with pytest.raises(OptionError, match="needs"):
        Continuous(2, **options)
