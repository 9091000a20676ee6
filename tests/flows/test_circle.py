"""Maps of angles: circles go to circles, smoothly, and all laws hold on the real line too."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import (
    Autoregressive,
    Chain,
    CircularSplineTransformer,
    Coupling,
    Elementwise,
    MoebiusTransformer,
    Permute,
    Planar,
    make_flow,
)
from pyro_nfvi.flows._angles import wrap_angle
from pyro_nfvi.testing._case import perturb

TURN = 2 * math.pi
FLOWS = {
    "spline": lambda: Elementwise(3, transformer=CircularSplineTransformer(5)),
    "moebius": lambda: Elementwise(3, transformer="moebius"),
    "one moebius": lambda: Elementwise(3, 2, transformer=MoebiusTransformer(1)),
    "ncsf": lambda: make_flow("ncsf*3", 3, 2),
    "moebius couplings": lambda: Chain(make_flow("moebius*2", 3), Permute.reversal(3)).inv,
}


def far(flow, scale=1.0):
    return perturb(flow, scale, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("name", FLOWS)
def test_a_turn_goes_to_a_turn(name):
    flow = far(FLOWS[name](), 0.5)
    x = 5 * torch.randn(20, 3, dtype=torch.float64)
    turns = torch.randint(-9, 9, (20, 3)).double() * TURN
    context = torch.randn(20, 2, dtype=torch.float64) if flow.context_dim else None
    for call in (flow, flow.inverse):
        y, ladj = call(x, context)
        further, same = call(x + turns, context)
        moved = (further - y) / TURN
        torch.testing.assert_close(moved, moved.round(), rtol=0, atol=1e-8)
        torch.testing.assert_close(moved.abs().sum(), turns.abs().sum() / TURN)
        torch.testing.assert_close(same, ladj, rtol=0, atol=1e-8)
    assert flow.periodic


@pytest.mark.parametrize("name", ["spline", "one moebius"])
def test_slopes_meet_where_the_circle_closes(name):
    flow = far(FLOWS[name]())
    context = torch.zeros(2, dtype=torch.float64) if flow.context_dim else None
    ends = torch.tensor([[math.pi - 1e-9], [1e-9 - math.pi]], dtype=torch.float64).expand(2, 3)
    _, ladj = flow(ends, context)
    torch.testing.assert_close(ladj[0], ladj[1], rtol=0, atol=1e-6)
    assert ladj.abs().min() > 0.01


def test_moebius_is_the_map_of_complex_numbers():
    a, b = 0.4, -0.3
    transformer = MoebiusTransformer(1)
    bound = 0.99
    raw = torch.tensor([a, b], dtype=torch.float64)
    raw = raw / (1 - raw.square().sum() / bound**2).sqrt()  # undoes the bound of the radius
    params = torch.cat([raw, torch.zeros(2, dtype=torch.float64)])
    x = torch.linspace(-9, 9, 50, dtype=torch.float64)
    y, ladj = transformer.forward(x, params.expand(50, 4))
    z, centre = torch.polar(torch.ones_like(x), x), torch.tensor(complex(a, b))
    expected = (z - centre) / (1 - centre.conj() * z)
    torch.testing.assert_close(torch.polar(torch.ones_like(y), y), expected)
    # As Rezende et al. write it.
    written = (1 - abs(centre) ** 2) / (z - centre).abs() ** 2 * (z - centre) - centre
    torch.testing.assert_close(expected, written)
    slope = (1 - abs(centre) ** 2) / (z - centre).abs() ** 2
    torch.testing.assert_close(ladj.exp(), slope)


def test_equal_moebius_maps_part_in_training():
    flow = Elementwise(1, transformer=MoebiusTransformer(3))
    steps = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(3):
        steps.zero_grad()
        y, ladj = flow(torch.linspace(-3, 3, 40).unsqueeze(-1))
        (-(2 * (y + 0.7).cos() + ladj.unsqueeze(-1)).mean()).backward()
        steps.step()
    centres, _ = flow.transformer._maps(flow.theta()["transformer"])
    assert torch.pdist(centres.squeeze(0).detach()).min() > 1e-3


def test_the_conditioner_sees_points_of_the_circle():
    flow = far(Coupling(4, 1, transformer="circular", hidden_dim=8))
    assert next(flow.net.parameters()).shape[-1] == 2 * 2 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapped_angles_are_inside(dtype):
    x = torch.tensor([0.0, math.pi, -math.pi, 3 * math.pi, -5 * math.pi, 1e4], dtype=dtype)
    up = torch.tensor(torch.inf, dtype=dtype)
    x = torch.cat([x, x.nextafter(up), x.nextafter(-up)]).requires_grad_()
    z = wrap_angle(x)
    assert bool(((z >= -math.pi) & (z < math.pi)).all())
    torch.testing.assert_close(z.cos(), x.cos(), rtol=0, atol=2e-3 if dtype == up.dtype else 1e-9)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_flows_of_reals_are_not_periodic():
    assert not Chain(make_flow("ncsf", 2), Planar(2)).periodic
    assert not make_flow("nsf", 2).inv.periodic


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CircularSplineTransformer(1), "bins"),
        (lambda: CircularSplineTransformer(1000), "between 2 and 999"),
        (lambda: MoebiusTransformer(0), "centres"),
        (lambda: Autoregressive(2, transformer="circular"), "angles. Take Coupling"),
    ],
)
def test_what_cannot_be_built(build, message):
    with pytest.raises(OptionError, match=message):
        build()
