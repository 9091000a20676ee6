"""Monotone nets and block neural autoregressive flows, beyond the laws."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import BlockAutoregressive, MonotoneTransformer
from pyro_nfvi.testing._case import perturb


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0])
def test_kernel_increases_and_is_solved_for_any_parameters(size):
    generator = torch.Generator().manual_seed(0)
    transformer = MonotoneTransformer(6)
    params = size * torch.randn(
        200, 1, transformer.num_params, generator=generator, dtype=torch.float64
    ).expand(-1, 101, -1)
    x = torch.linspace(-8, 8, 101, dtype=torch.float64).expand(200, -1)
    y, ladj = transformer.forward(x, params)
    assert (y.diff(dim=-1) > 0).all()
    assert ladj.isfinite().all()
    back, _ = transformer.inverse(y, params)
    again, _ = transformer.forward(back, params)
    torch.testing.assert_close(again, y, rtol=1e-10, atol=1e-10)


def test_codomain_is_all_reals():
    transformer = MonotoneTransformer(4)
    params = torch.randn(1, 1, transformer.num_params, dtype=torch.float64)
    params[..., -2:] = 0
    for y in (-1e6, 1e6):
        x, _ = transformer.inverse(torch.full((1, 1), y, dtype=torch.float64), params)
        assert x.item() == pytest.approx(y, rel=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("num_hidden", [1, 3])
def test_block_flow_is_triangular_with_positive_slopes(num_hidden, reverse):
    flow = BlockAutoregressive(4, hidden_factor=3, num_hidden=num_hidden, reverse=reverse).double()
    perturb(flow, 1.0)
    x = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda p: flow(p)[0], x)
    triangle = jacobian.tril() if not reverse else jacobian.triu()
    assert torch.equal(jacobian, triangle)
    assert (jacobian.diagonal() > 0).all()
    torch.testing.assert_close(flow(x)[1], jacobian.diagonal().log().sum())


def test_block_tails_are_not_cut():
    flow = perturb(BlockAutoregressive(2).double(), 1.0)
    y = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    x, _ = flow.inverse(y)
    torch.testing.assert_close(flow(x)[0], y)


@pytest.mark.parametrize("options", [{"hidden_factor": 0}, {"num_hidden": 0}, {"num_hidden": True}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(OptionError, match="BlockAutoregressive: "):
        BlockAutoregressive(2, **options)


def test_a_kernel_needs_units():
    with pytest.raises(OptionError, match="units needs"):
        MonotoneTransformer(0)
