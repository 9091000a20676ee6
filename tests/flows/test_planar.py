"""What planar layers owe beside the laws: the constraint, the fused chain, the certificate."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi._math import MIN_SLOPE
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import Chain, Planar
from pyro_nfvi.flows._planar import PlanarChain
from pyro_nfvi.testing._case import perturb


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*shape, scale=1.0, seed=0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


def apart(theta):
    """Planar layers that hold the rows of a chain's parameters."""
    layers = []
    for k in range(len(theta["b"])):
        layer = Planar(theta["v"].shape[-1]).double()
        layer.params.load_state_dict({name: value[k] for name, value in theta.items()})
        layers.append(layer)
    return Chain(*layers)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_layer_stays_invertible_however_u_pulls(size):
    flow = Planar(3).double()
    with torch.no_grad():
        for sign in (-1, 1):
            flow.params.u.copy_(sign * size * flow.params.v)
            flow.params.b.zero_()
            # At the plane itself, where the slope is least: 1 + a >= MIN_SLOPE.
            ladj = flow(torch.zeros(3, dtype=torch.float64))[1]
            assert ladj.exp() >= MIN_SLOPE * (1 - 1e-9)
            # Increasing along w, hence one-to-one.
            ticks = torch.linspace(-0.05, 0.05, 401, dtype=torch.float64).unsqueeze(-1)
            direction = flow.params.v / flow.params.v.norm()
            along = flow(ticks * direction)[0] @ direction
            assert (along.diff() > 0).all()


def test_from_values_gives_the_effective_parameters():
    w, u, b = double(4, seed=1), 0.1 * double(4, seed=2), torch.tensor(0.3, dtype=torch.float64)
    x = double(50, 4)
    y, ladj = Planar.from_values(w, u, b)(x)
    t = x @ w + b
    torch.testing.assert_close(y, x + torch.tanh(t)[:, None] * u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ladj, torch.log(1 + (w @ u) / torch.cosh(t) ** 2))


@pytest.mark.parametrize(
    ("w", "u", "error"),
    [
        ([0.0, 0.0], [1.0, 0.0], OptionError),
        ([1.0, 0.0], [-1.0, 0.0], OptionError),
        ([2.0, 0.0], [-5.0, 0.0], OptionError),
        ([1.0, 0.0], [1.0], ShapeError),
    ],
)
def test_from_values_refuses_what_has_no_inverse(w, u, error):
    with pytest.raises(error, match=r"Planar\.from_values needs"):
        Planar.from_values(w, u)


@pytest.mark.parametrize("a", [-0.9985, -0.9, -1e-9, 1e-9, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_from_the_edge_of_the_constraint_to_steep_layers(a, dtype):
    w = torch.tensor([2.0, -1.0, 0.5], dtype=dtype)
    flow = Planar.from_values(w, a * w / w.square().sum(), torch.tensor(0.2, dtype=dtype))
    sizes = torch.logspace(-12, 3, 31, dtype=dtype)
    unit = w / w.norm()
    # Along w to both sides, and around the plane where the slope is least.
    plane = -0.2 * w / w.square().sum()
    y = torch.cat([sizes[:, None] * unit, -sizes[:, None] * unit, plane + sizes[:, None] * unit])
    y = torch.cat([y, plane - sizes[:, None] * unit, y + torch.ones(3, dtype=dtype)])
    x, ladj = flow.inverse(y)
    again, forward_ladj = flow(x)
    residual = ((again - y).abs() / (1 + y.abs())).max().item()
    # In float32 the rounding of x alone moves f(x) by 1 + a times 6e-8.
    assert residual <= (1e-10 if dtype == torch.float64 else 1e-6 * (10 + abs(a)))
    assert ladj.isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(ladj, -forward_ladj, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("num_layers", [1, 2, 5, 16])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_fused_chain_equals_its_layers(num_layers, dim):
    chain = perturb(PlanarChain(dim, num_layers).double(), 0.7, seeded(3))
    layers = apart(dict(chain.params()))
    x = double(20, dim, scale=1.5)
    tight = {"rtol": 1e-9, "atol": 1e-9}
    for got, expected in zip(chain(x), layers(x)):
        torch.testing.assert_close(got, expected, **tight)
    y = chain(x)[0].detach()
    for got, expected in zip(chain.inverse(y), layers.inverse(y)):
        torch.testing.assert_close(got, expected, **tight)
    score = double(20, dim, seed=5)
    got, expected = chain.forward_with_score(x, score), layers.forward_with_score(x, score)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-7, atol=1e-7)


def test_fused_chain_equals_its_layers_row_by_row_with_a_context():
    chain = perturb(PlanarChain(3, 4, context_dim=2).double(), 0.5, seeded(4))
    x, context = double(6, 3), double(6, 2, seed=1)
    y, ladj = chain(x, context)
    theta = {name: value.detach() for name, value in chain.theta(context).items()}
    for i in range(6):
        layers = apart({name: value[i] for name, value in theta.items()})
        one_y, one_ladj = layers(x[i])
        torch.testing.assert_close(y[i], one_y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ladj[i], one_ladj, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needs_x", [False, True])
def test_fused_gradients_equal_those_of_the_layers(needs_x):
    chain = perturb(PlanarChain(5, 6).double(), 0.5, seeded(6))
    layers = apart({name: value.detach() for name, value in chain.params().items()})
    weights, x = double(30, 5, seed=1), double(30, 5)
    gradients = []
    for flow in (chain, layers):
        point = x.clone().requires_grad_(needs_x)
        y, ladj = flow(point)
        ((weights * y).sum() + (weights[:, 0] * ladj).sum()).backward()
        gradients.append(point.grad)
    if needs_x:
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    for name, parameter in chain.params.named_parameters():
        expected = torch.stack([getattr(layer.params, name).grad for layer in layers.flows])
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-8)


def test_long_chain_inverts_in_many_dimensions():
    chain = perturb(PlanarChain(100, 64).double(), 0.3, seeded(7))
    y = chain(double(16, 100))[0].detach()
    x, _ = chain.inverse(y)
    assert ((chain(x)[0] - y).abs() / (1 + y.abs())).max() <= 1e-10


@pytest.mark.parametrize("num_layers", [0, -1, 1.0, True])
def test_chain_needs_a_number_of_layers(num_layers):
    with pytest.raises(OptionError, match="num_layers"):
        PlanarChain(2, num_layers)


def test_a_layer_of_no_weight_vector_is_finite():
    # v = 0 exactly: neither the value nor the gradient may be NaN.
    flow = Planar(2)
    with torch.no_grad():
        flow.params.v.zero_()
        flow.params.u.fill_(0.5)
    y, ladj = flow(torch.ones(3, 2))
    (y.sum() + ladj.sum()).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    assert y.isfinite().all()
    assert ladj.isfinite().all()
