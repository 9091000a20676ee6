"""Tail layers: what only they owe."""

import torch

from pyro_nfvi.flows import Elementwise, make_flow
from pyro_nfvi.flows._tail_transform import TailTransformer, _map, _root


def layer(left, right):
    flow = Elementwise(1, transformer=TailTransformer()).double()
    with torch.no_grad():
        flow.params.transformer.copy_(torch.tensor([[left, right]]))
    return flow


def points(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def test_each_side_has_its_own_tail():
    y, ladj = layer(0.0, 2.0)(points(-3.0, 0.0, 3.0))
    assert y[0] == -3.0
    assert y[1] == 0.0
    assert y[2] > 6.0
    assert ladj[0] == 0.0
    assert layer(0.0, -2.0)(points(3.0))[0] < 2.0


def test_the_two_branches_meet_smoothly_at_zero():
    # Value, log-slope and their derivatives in the parameter, from both sides of h = 0.
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    transformer = TailTransformer()
    results = []
    for raw in (-1e-5, 1e-5):
        params = torch.full((9, 2), raw, dtype=torch.float64, requires_grad=True)
        y, ladj = transformer.forward(x, params)
        grads = [torch.autograd.grad(v.sum(), params, retain_graph=True)[0] for v in (y, ladj)]
        results.append([y, ladj, *grads])
    for below, above in zip(*results):
        torch.testing.assert_close(below, above, atol=2e-2, rtol=2e-3)
    y, _ = transformer.forward(x, torch.zeros(9, 2, dtype=torch.float64))
    assert torch.equal(y, x)


def test_the_free_number_has_a_gradient_at_the_identity():
    params = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    y, _ = TailTransformer().forward(torch.full((1,), 2.0, dtype=torch.float64), params)
    (grad,) = torch.autograd.grad(y.sum(), params)
    torch.testing.assert_close(grad[0, 1], torch.tensor(0.25 * 4.0, dtype=torch.float64))


def test_far_out_nothing_overflows_and_the_inverse_holds():
    for raw in (-50.0, -0.3, 0.0, 0.3, 50.0):
        flow, x = layer(raw, raw), points(-1e4, -6.5, -6.0, -1e-9, 0.0, 0.5, 5.9, 80.0)
        y, ladj = flow(x)
        back, inverse = flow.inverse(y)
        assert torch.isfinite(y).all()
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(inverse, -ladj, rtol=1e-9, atol=1e-9)


def test_in_single_precision_far_points_stay_finite():
    flow = make_flow("tail", 2)
    with torch.no_grad():
        flow.params.transformer.fill_(1e3)
    y, ladj = flow(torch.full((1, 2), 1e6))
    assert torch.isfinite(y).all()
    assert torch.isfinite(ladj).all()


def test_the_tail_is_a_power():
    # P(|y| > t) ~ t^(-1/h): the ratio of quantiles of |x| mapped, up to logarithms.
    h = 0.4
    raw = torch.tan(torch.tensor(h) * torch.pi / 1.8) * 1.8 / torch.pi / 0.25
    levels = torch.tensor([1e-4, 1e-7], dtype=torch.float64)
    x = -torch.special.ndtri(levels)
    y = layer(float(raw), float(raw))(x.unsqueeze(-1))[0].squeeze(-1).detach()
    index = torch.log(levels[0] / levels[1]) / torch.log(y[1] / y[0])
    assert abs(float(index) - 1 / h) < 0.5


def test_the_inverse_begins_where_two_steps_of_newton_end_at_rounding():
    size = torch.logspace(-12, -0.05, 60, dtype=torch.float64)
    h = torch.cat([-size, size.new_zeros(1), size]).unsqueeze(-1)
    x = torch.logspace(-12, 1.5, 100, dtype=torch.float64).expand(len(h), -1)
    h = h.expand_as(x)
    for sign in (-1.0, 1.0):
        found = _root(_map(sign * x, h)[0], h)
        torch.testing.assert_close(found, sign * x, rtol=1e-8, atol=0.0)
