"""What autoregressive layers owe beside the laws: masks, order, both directions, gates."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.flows._autoregressive import iaf, maf
from pyro_nfvi.testing._case import perturb


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


def jacobian(flow, x, context=None):
    return torch.autograd.functional.jacobian(lambda point: flow(point, context)[0], x)


@pytest.mark.parametrize("gate", ["affine", "sigmoid"])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("hidden_dim", [16, (8, 8), 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_coordinate_sees_all_earlier_ones_and_no_later_one(gate, context_dim, hidden_dim, reverse):
    flow = iaf(5, context_dim, hidden_dim=hidden_dim, gate=gate, reverse=reverse).double()
    perturb(flow, 0.7, seeded(1))
    context = double(context_dim) if context_dim else None
    found = jacobian(flow, double(5), context)
    found = found.flip(0, 1) if reverse else found
    assert torch.equal(found.triu(1), torch.zeros_like(found))
    # The skip connection reaches everything, however narrow the hidden layers are.
    assert (found.tril(-1) != 0).sum() == 10
    assert (found.diagonal() > 0).all()


def test_hidden_layers_alone_reach_every_earlier_coordinate():
    flow = iaf(5, hidden_dim=(16, 16)).double()
    perturb(flow, 0.7, seeded(2))
    with torch.no_grad():
        flow.net.skip.zero_()
    found = jacobian(flow, double(5))
    assert (found.tril(-1) != 0).sum() == 10


def test_every_coordinate_sees_the_context_through_the_hidden_layers():
    flow = iaf(3, 2, hidden_dim=16).double()
    perturb(flow, 0.7, seeded(3))
    with torch.no_grad():
        flow.net.skip.zero_()
    x = double(3)
    found = torch.autograd.functional.jacobian(lambda c: flow(x, c)[0], double(2))
    assert (found != 0).all()


@pytest.mark.parametrize("gate", ["affine", "sigmoid"])
def test_maf_is_the_inverse_of_iaf(gate):
    torch.manual_seed(0)
    forward = iaf(4, 2, hidden_dim=8, gate=gate).double()
    torch.manual_seed(0)
    other = maf(4, 2, hidden_dim=8, gate=gate).double()
    for flow in (forward, other):
        perturb(flow, 0.5, seeded(4))
    x, context = double(9, 4), double(9, 2, seed=1)
    for got, expected in zip(other(x, context), forward.inverse(x, context)):
        assert torch.equal(got, expected)
    for got, expected in zip(other.inverse(x, context), forward(x, context)):
        assert torch.equal(got, expected)
    assert other.inv is other.flow


def test_layers_of_a_formula_alternate_their_order():
    flow = make_flow("iaf*4", 3)
    assert [layer.reverse for layer in flow.flows] == [False, True, False, True]
    perturb(flow.double(), 0.5, seeded(5))
    # Two orders together let every coordinate see every other.
    assert (jacobian(flow, double(3)) != 0).all()


def test_sigmoid_gate_is_kingmas_divided_by_its_start():
    flow = iaf(3, hidden_dim=8, gate="sigmoid").double()
    x = double(20, 3)
    y, ladj = flow(x)
    assert torch.equal(y, x)
    assert torch.equal(ladj, torch.zeros_like(ladj))
    perturb(flow, 1.0, seeded(6))
    y, ladj = flow(x)
    shift, raw = flow.net(x).unbind(-1)
    gate = torch.sigmoid(2 + (10 / math.pi) * torch.atan(raw * math.pi / 10))
    start = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(y, gate / start * x + (1 - gate) * shift)
    torch.testing.assert_close(ladj, (gate / start).log().sum(-1))
    # A gate cannot expand by more than 1 / sigmoid(2).
    assert (ladj <= 3 * -math.log(start) + 1e-12).all()


def test_affine_gate_bounds_the_log_scale():
    flow = iaf(2, hidden_dim=4).double()
    with torch.no_grad():
        for bias in flow.net.biases:
            bias.fill_(1e6)
    ladj = flow(torch.zeros(2, dtype=torch.float64))[1]
    assert ladj.item() == pytest.approx(10.0, abs=1e-3)


def test_one_dimension_without_context_is_an_affine_map_that_learns():
    flow = iaf(1).double()
    x = double(50, 1)
    y, ladj = flow(x)
    (y.sum() + ladj.sum()).backward()
    assert flow.net.biases[-1].grad.abs().min() > 0
    perturb(flow, 1.0, seeded(7))
    slope = jacobian(flow, x[0])
    torch.testing.assert_close(flow(x)[0] - flow(x[:1])[0], (x - x[:1]) * slope)


@pytest.mark.parametrize("hidden_dim", [0, -1, (8, 0), (), 2.5, True])
def test_hidden_dim_must_be_positive_integers(hidden_dim):
    with pytest.raises(OptionError, match="hidden_dim needs"):
        iaf(3, hidden_dim=hidden_dim)


def test_unknown_gate():
    with pytest.raises(OptionError, match="'affine' or 'sigmoid'; got 'tanh'"):
        iaf(3, gate="tanh")


@pytest.mark.parametrize(("context_dim", "hidden_dim"), [(0, 80), (2, (80, 75))])
@pytest.mark.parametrize("reverse", [False, True])
def test_scores_of_many_dimensions_equal_those_of_few(reverse, context_dim, hidden_dim):
    # Above D = 64 the triangular system is solved block by block; here the last block is shorter.
    flow = iaf(70, context_dim, hidden_dim=hidden_dim, reverse=reverse).double()
    perturb(flow, 0.3, seeded(8))
    x, context = double(4, 70), double(4, 2, seed=1) if context_dim else None
    y, _, score = flow.forward_with_score(x, -x, context)
    point = y.detach().requires_grad_()
    back, ladj = flow.inverse(point, context)
    (-0.5 * back.square().sum() + ladj.sum()).backward()
    scale = 1 + point.grad.abs().max()
    torch.testing.assert_close(score / scale, point.grad / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
def test_jacobian_of_the_net_is_that_of_autograd(activation):
    flow = iaf(4, 2, hidden_dim=(9, 7), reverse=True, activation=activation).double()
    perturb(flow, 0.5, seeded(5))
    x, context = double(4), double(2, seed=1)
    expected = torch.autograd.functional.jacobian(lambda point: flow.net(point, context), x)
    torch.testing.assert_close(flow.net.jacobian(x, context), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_solving_input_by_input_equals_whole_passes(reverse):
    net = iaf(5, 2, hidden_dim=(9, 7), reverse=reverse).double().net
    perturb(net, 0.5, seeded(6))
    x, context, seen = double(3, 5), double(3, 2, seed=1), {}

    def solve_one(i, outputs):
        seen[i] = outputs
        return x[:, i]

    assert torch.equal(net.solve(solve_one, torch.zeros_like(x), context), x)
    assert list(seen) == list(range(5))[:: -1 if reverse else 1]
    outputs = torch.stack([seen[i] for i in range(5)], -2)
    torch.testing.assert_close(outputs, net(x, context))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_without_the_skip_every_earlier_input_is_seen(reverse, context_dim):
    dim = 6
    hidden = dim if context_dim else dim - 1
    options = {"reverse": reverse, "skip_connections": False}
    flow = iaf(dim, context_dim, hidden_dim=(hidden, hidden), **options).double()
    assert flow.net.skip is None
    perturb(flow, 0.5, seeded(5))
    context = double(context_dim, seed=1) if context_dim else None
    seen = (flow.net.jacobian(double(dim), context) != 0).any(1)
    earlier = torch.ones(dim, dim).triu(1) if reverse else torch.ones(dim, dim).tril(-1)
    assert torch.equal(seen, earlier.bool())
    with pytest.raises(OptionError, match=f"at least {hidden} units.*keep the skip"):
        iaf(dim, context_dim, hidden_dim=(hidden, hidden - 1), **options)


@pytest.mark.parametrize("name", ["iaf", "maf", "nsf-ar", "naf", "realnvp", "nsf"])
def test_an_unknown_activation_is_named(name):
    with pytest.raises(OptionError, match="'tanh', 'relu'"):
        make_flow(name, 3, activation="gelu")


@pytest.mark.parametrize("reverse", [False, True])
def test_the_solve_as_one_operation_equals_the_blocks(reverse):
    flow = perturb(iaf(9, hidden_dim=11, reverse=reverse).double(), 0.3, seeded(8))
    x = double(4, 9)
    expected = flow.forward_with_score(x, -x)[2]
    graph = make_fx(lambda point: flow.forward_with_score(point, -point)[2])(x)
    assert any("solve_masked" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), expected)
