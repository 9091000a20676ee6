"""Chains that keep no activations: gradients as autograd's, of all flows with exact inverses."""

from __future__ import annotations

import copy

import pytest
import torch
from catalog import FLOWS
from torch import nn

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Chain, Coupling, DiagonalAffine, Planar, make_flow
from pyro_nfvi.testing._case import FlowCase

DIM = 4


def exact(name):
    case = FLOWS[name]
    if DIM < case.min_dim:
        return False
    return all(layer.flow.inverse_kind != "numeric" for layer in case.make(DIM, 0).layers())


EXACT = [
    pytest.param(name, marks=[pytest.mark.slow] * FLOWS[name].slow) for name in FLOWS if exact(name)
]


def gradients(chain, call, x, context):
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    outputs = call(chain)(x, context)
    loss = sum(
        (one * torch.arange(1.0, 1 + one.numel()).view_as(one)).cos().sum() for one in outputs
    )
    inputs = [x, *([] if context is None else [context])]
    inputs += [one for one in chain.parameters() if one.requires_grad]
    return [loss, *torch.autograd.grad(loss, inputs, materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_those_of_autograd(name):
    case = FlowCase(FLOWS[name].make, DIM, 2 if FLOWS[name].context else 0)
    layers = [case.build(far=0.3, seed=seed) for seed in range(2)]
    plain = Chain(*layers)
    chain = Chain(*copy.deepcopy(layers), reversible=True)
    x, context = case.points(6), case.contexts(6)
    for call in (lambda one: one, lambda one: one.inverse):
        found, expected = gradients(chain, call, x, context), gradients(plain, call, x, context)
        for got, reference in zip(found, expected, strict=True):
            size = 1 + reference.abs().max()
            torch.testing.assert_close(got / size, reference / size, rtol=0, atol=1e-7)


def test_a_layer_that_occurs_twice_and_a_context_that_depends_on_the_point():
    coupling = Coupling(3, 3, hidden_dim=4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    found = []
    for reversible in (False, True):
        chain = Chain(coupling, coupling, reversible=reversible)
        point = x.clone().requires_grad_()
        y, ladj = chain(point, point.sin())
        (first,) = torch.autograd.grad((y.sin().sum() + ladj.sum()), point, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), point)
        found.append((first.detach(), second))
    for got, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, reference)


def saved(depth, *, reversible):
    """Bytes that a forward pass keeps for its backward pass."""
    flow = make_flow(f"realnvp*{depth}", 4, reversible=reversible)
    own = {one.data_ptr() for one in (*flow.parameters(), *flow.buffers())}
    kept = {}

    def keep(one):
        if one.data_ptr() not in own:
            kept[one.data_ptr()] = one.numel() * one.element_size()
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        y, ladj = flow.inverse(torch.randn(500, 4))
        loss = y.sum() + ladj.sum()
    assert loss.requires_grad
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_the_depth():
    assert saved(16, reversible=True) == saved(2, reversible=True)
    assert saved(16, reversible=False) > 4 * saved(2, reversible=False)


def test_points_that_do_not_come_back_are_told_and_right_all_the_same():
    layers = [DiagonalAffine(1), make_flow("affine", 1), DiagonalAffine(1)]
    with torch.no_grad():
        layers[0].params.loc.fill_(1e6)
        layers[2].params.loc.fill_(-1e6)
    x = torch.tensor([[0.123456]], requires_grad=True)
    y, _ = Chain(*layers, reversible=True)(x)
    with pytest.warns(UserWarning, match="did not come back"):
        y.sin().sum().backward()
    expected = x.detach().clone().requires_grad_()
    Chain(*layers)(expected)[0].sin().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Chain(Planar(2), reversible=True), "exact inverses; that of Planar"),
        (lambda: make_flow("naf|affine", 2, reversible=True), "numeric"),
        (
            lambda: Chain(
                Coupling(2, conditioner=lambda i, o: nn.Sequential(nn.Linear(i, o), nn.Dropout())),
                reversible=True,
            ),
            "Dropout may differ in train mode",
        ),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(build, message):
    with pytest.raises(OptionError, match=message):
        build()
