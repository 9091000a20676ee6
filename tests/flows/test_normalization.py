"""Actnorm and batch norm, beyond the laws."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows import ActNorm, BatchNorm


@pytest.mark.parametrize("layer", [ActNorm, lambda dim: BatchNorm(dim, momentum=1.0)])
def test_statistics_come_by_an_explicit_call_only(layer):
    flow = layer(2)
    y = torch.tensor([1.0, -50.0]) + torch.tensor([3.0, 0.01]) * torch.randn(500, 2)
    flow.train()
    before = flow.inverse(y)[0]
    assert torch.equal(before, y)
    assert torch.equal(flow.inverse(y)[0], before)  # a first call changed nothing
    (flow.initialize if isinstance(flow, ActNorm) else flow.update)(y)
    x, ladj = flow.inverse(y)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(ladj, -y.std(0).log().sum().expand(500), atol=1e-4, rtol=1e-4)


def test_momentum_moves_part_of_the_way():
    flow = BatchNorm(1, momentum=0.25)
    y = torch.tensor([[7.0], [9.0]])
    flow.update(y)
    assert flow.running_mean.item() == pytest.approx(2.0)
    assert flow.running_std.item() == pytest.approx(1 + 0.25 * (2**0.5 - 1))


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(1, 2),
        torch.zeros(4, 3),
        torch.zeros(2),
        torch.zeros(4, 2, dtype=torch.long),
        torch.full((4, 2), torch.nan),
        torch.full((4, 2), torch.inf),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(data):
    for flow, call in ((ActNorm(2), "initialize"), (BatchNorm(2), "update")):
        before = {name: value.clone() for name, value in flow.state_dict().items()}
        with pytest.raises(ShapeError, match=call):
            getattr(flow, call)(data)
        assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_constant_column_stays_finite():
    flow = ActNorm(2)
    flow.initialize(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    assert flow.inverse(torch.tensor([[1.5, 5.0]]))[0].isfinite().all()


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_statistics_know_no_unit(unit):
    flow, y = ActNorm(2), unit * (torch.tensor([3.0, 0.0]) + torch.randn(300, 2))
    flow.initialize(y)
    x, ladj = flow.inverse(y)
    torch.testing.assert_close(x.std(0), torch.ones(2), atol=1e-4, rtol=0)
    assert ladj[0].item() == pytest.approx(-2 * torch.tensor(unit).double().log().item(), abs=0.3)


def test_statistics_of_a_large_offset_keep_what_the_dtype_resolves():
    y = 1e8 + torch.randn(300, 1, dtype=torch.float64)
    flow = ActNorm(1).double()
    flow.initialize(y)
    assert flow.inverse(y)[0].std().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e-40, 1e30])
def test_a_constant_column_stays_finite(value):
    flow, y = ActNorm(1), torch.full((5, 1), value)
    flow.initialize(y)
    x, ladj = flow.inverse(y)
    assert x.abs().max() <= 1
    assert ladj.isfinite().all()
    assert flow(x)[0].isfinite().all()


@pytest.mark.parametrize("unit", [1e-50, 1e50])
def test_units_that_float32_does_not_hold(unit):
    y = unit * (3 + torch.randn(300, 1, dtype=torch.float64))
    flow = ActNorm(1).double()
    flow.initialize(y)
    assert flow.inverse(y)[0].std().item() == pytest.approx(1.0, abs=1e-6)
    if unit > 1:
        with pytest.raises(ShapeError, match="too large for torch.float32"):
            ActNorm(1).initialize(y)
