"""Vector-Jacobian products without torch.func, and what a score costs in imports."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from pyro_nfvi._vjp import vjp


def two(x, y):
    return x * y.sin(), (x**2).sum(-1), torch.ones_like(y)


@pytest.mark.parametrize("grad", [False, True])
def test_products_are_those_of_torch(grad):
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(3, 2, generator=generator) for _ in range(2)]
    cotangents = (torch.randn(3, 2, generator=generator), torch.randn(3, generator=generator))
    cotangents = (*cotangents, torch.ones(3, 2))
    with torch.set_grad_enabled(grad):
        pull = vjp(two, *points)
        found, again = pull(cotangents), pull(cotangents)
    for one, other, expected in zip(found, again, torch.func.vjp(two, *points)[1](cotangents)):
        assert not one.requires_grad
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected)


def test_outputs_and_inputs_without_a_connection_give_zeros():
    x, one = torch.ones(2), torch.ones(())
    assert vjp(lambda x, y: (y * 1.0, one), x, x)((x, one))[0].tolist() == [0, 0]
    assert vjp(lambda x: torch.ones(2), x)(x)[0].tolist() == [0, 0]


def test_products_run_under_transforms():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = torch.vmap(lambda x: vjp(lambda x: (x**3).sum(), x)(torch.ones(()))[0])(rows)
    torch.testing.assert_close(found, 3 * rows**2)


@pytest.mark.slow
def test_no_flow_imports_the_compiler_of_torch_for_a_score():
    # More than a second of processor time, in every process.
    code = """
    import sys, torch
    from pyro_nfvi.flows import make_flow
    from pyro_nfvi.flows._registry import FLOW_NAMES
    told = []
    for name in FLOW_NAMES:
        flow = make_flow(name, 4)
        x = torch.randn(8, 4)
        flow.forward_with_score(x, -x)
        if {"torch._dynamo", "sympy"} & set(sys.modules):
            told.append(name)
            break
    print(len(FLOW_NAMES), *told)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True,
    )  # fmt: skip
    number, *told = done.stdout.split() or [done.stderr]
    assert told == [], done.stderr
    assert int(number) > 10
