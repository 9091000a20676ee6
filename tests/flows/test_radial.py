"""What radial layers owe beside the laws: the closed-form inverse at its extremes."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import Radial


@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(2.0, 5.0), (0.0011, 1e4), (1e4, -9999.99), (1.0, -0.998), (1.0, 1e-12), (0.0011, 0.0)],
)
def test_closed_form_inverse_at_the_extremes(dim, alpha, beta):
    z0 = torch.linspace(-1, 1, dim, dtype=torch.float64)
    flow = Radial.from_values(z0, alpha, beta)
    unit = torch.ones(dim, dtype=torch.float64) / math.sqrt(dim)
    y = z0 + torch.logspace(-12, 6, 37, dtype=torch.float64)[:, None] * unit
    y = torch.cat([y, 2 * z0 - y, z0[None]])
    x, ladj = flow.inverse(y)
    again, forward_ladj = flow(x)
    # The rounding of x (about 1, like z0) alone moves f(x) by the slope at the centre.
    rounding = 2.3e-16 * (alpha + beta) / alpha
    assert ((again - y).abs() / (1 + y.abs())).max() <= 1e-10 + rounding
    assert ladj.isfinite().all()
    torch.testing.assert_close(ladj, -forward_ladj, rtol=1e-6, atol=1e-6)


EXTREMES = [(2.0, 5.0), (0.0011, 1e4), (1e4, -9999.99), (1.0, -0.998), (0.0011, 0.0)]


@pytest.mark.parametrize(("alpha", "beta"), EXTREMES)
def test_distance_from_the_centre_is_right_relative_to_itself(alpha, beta):
    flow = Radial.from_values(torch.zeros(2, dtype=torch.float64), alpha, beta)
    y = torch.logspace(-12, 6, 37, dtype=torch.float64)[:, None] * torch.tensor([0.6, -0.8])
    torch.testing.assert_close(flow(flow.inverse(y)[0])[0], y, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dim", [1, 3])
def test_centre_stays_and_has_finite_gradients(dim):
    alpha, beta = 2.0, 5.0
    flow = Radial.from_values(torch.zeros(dim, dtype=torch.float64), alpha, beta)
    for call, sign in ((flow, 1), (flow.inverse, -1)):
        flow.zero_grad()
        x = torch.zeros(1, dim, dtype=torch.float64, requires_grad=True)
        y, ladj = call(x)
        assert torch.equal(y, x)
        expected = sign * dim * math.log((alpha + beta) / alpha)
        assert ladj.item() == pytest.approx(expected, rel=1e-10)
        (y.sum() + ladj.sum()).backward()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in flow.parameters())
    score = flow.forward_with_score(x.detach(), torch.ones(1, dim).double())[2]
    torch.testing.assert_close(score, torch.full_like(score, alpha / (alpha + beta)))


def test_layer_moves_points_on_their_ray():
    flow = Radial.from_values([1.0, -1.0, 0.5], 0.7, -0.3)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    z0 = torch.tensor([1.0, -1.0, 0.5])
    before, after = x - z0, flow(x)[0] - z0
    cosine = torch.cosine_similarity(before, after)
    torch.testing.assert_close(cosine, torch.ones(50), rtol=0, atol=1e-5)
    r = before.norm(dim=-1)
    torch.testing.assert_close(after.norm(dim=-1), r * (1 - 0.3 / (0.7 + r)))


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.0, 1.0), (-1.0, 5.0), (1.0, -1.0), (1.0, -2.0), (float("nan"), 1.0)]
)
def test_from_values_refuses_what_has_no_inverse(alpha, beta):
    with pytest.raises(OptionError, match="alpha and alpha"):
        Radial.from_values([0.0, 0.0], alpha, beta)


def test_from_values_refuses_wrong_shapes():
    with pytest.raises(ShapeError, match="scalar alpha and beta"):
        Radial.from_values([0.0, 0.0], torch.ones(2), 1.0)
