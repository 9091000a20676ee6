"""Numbers that are no numbers: each gets a clear error or a right answer, from every flow."""

from __future__ import annotations

import math

import pytest
import torch
from catalog import FLOWS

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import Affine, make_flow
from pyro_nfvi.testing._case import FlowCase

CASES = [pytest.param(n, marks=[pytest.mark.slow] * FLOWS[n].slow) for n in FLOWS]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_row_says_so_and_spoils_no_other(name, bad):
    case = FLOWS[name]
    examined = FlowCase(case.make, max(case.dims), 0, torch.float64)
    flow, x = examined.build(far=0.5), examined.points(4)
    spoilt = x.clone()
    spoilt[2] = bad
    with torch.no_grad():
        for call in (flow, flow.inverse):
            (y, ladj), (expected, expected_ladj) = call(spoilt), call(x)
            # A constant log-determinant is right for any point; the point itself tells.
            assert not y[2].isfinite().any()
            rest = torch.tensor([0, 1, 3])
            # The numeric inverses stop once no row moves any more.
            torch.testing.assert_close(y[rest], expected[rest], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(ladj[rest], expected_ladj[rest], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_density_of_a_bad_point_is_nan_or_nothing(bad):
    density = FlowDensity(make_flow("nsf*2", 3))
    log_p = density.log_prob(torch.tensor([[0.0, bad, 0.0], [0.0, 0.0, 0.0]]))
    assert log_p[0].isnan() if math.isnan(bad) else log_p[0] == -math.inf
    assert log_p[1].isfinite()
    if bad == math.inf:
        gradients = torch.autograd.grad(log_p[1], list(density.parameters()))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16])
def test_other_types_are_named(name, dtype):
    case = FLOWS[name]
    flow = case.make(max(case.dims), 0)
    x = torch.ones(3, max(case.dims)).to(dtype)
    for call in (flow, flow.inverse):
        with pytest.raises(ShapeError, match="Convert"):
            call(x)


@pytest.mark.parametrize("formula", ["realnvp", "nice", "nsf", "glow"])
def test_coupling_of_one_dimension_tells_what_to_take(formula):
    with pytest.raises(OptionError, match="at least 2 dimensions.*planar"):
        make_flow(formula, 1)


@pytest.mark.parametrize("formula", ["maf*1", "nsf-ar*1", "naf*1", "bnaf*1", "ffjord*1", "relu*2"])
def test_the_others_take_one_dimension(formula):
    flow = make_flow(formula, 1)
    y, ladj = flow(torch.zeros(4, 1))
    assert y.shape == (4, 1)
    assert ladj.shape == (4,)


@pytest.mark.parametrize("formula", ["realnvp*2", "nsf-ar*1", "planar*2", "ffjord*1"])
def test_contexts_of_other_types_are_named(formula):
    flow = make_flow(formula, 2, 3)
    for context in (torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3).half(), torch.ones(4, 2)):
        with pytest.raises(ShapeError):
            flow(torch.zeros(4, 2), context)


def test_contexts_that_are_no_tensors_are_named_before_they_are_asked_for_a_shape():
    density = FlowDensity(make_flow("iaf*1", 3, 2))
    for call in (density.distribution, lambda c: density.rsample_and_log_prob((2,), c)):
        with pytest.raises(ShapeError, match="torch.as_tensor"):
            call([0.0, 1.0])


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_an_affine_map_of_its_own_needs_a_positive_scale(scale):
    with pytest.raises(OptionError, match="positive scale"):
        Affine(torch.zeros(2), torch.tensor([1.0, scale]), own=True)
