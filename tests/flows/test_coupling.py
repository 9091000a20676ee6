"""What coupling layers owe beyond the laws: masks, conditioners, and clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Chain, Coupling, make_flow
from pyro_nfvi.flows._coupling_masks import (
    alternating,
    channel,
    checkerboard,
    halves,
    random_halves,
)
from pyro_nfvi.flows._transformers import ShiftTransformer
from pyro_nfvi.testing._case import perturb

MASKS = {
    "halves": halves(6),
    "alternating": alternating(6),
    "random": random_halves(6),
    "checkerboard": checkerboard(1, 2, 3),
    "channel": channel(2, 1, 3),
    "given": torch.tensor([True, False, False, False, False, False]),
}


def far(flow):
    return perturb(flow, 1.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_only_masked_coordinates_move_given_the_others(name, reverse):
    moved = ~MASKS[name] if reverse else MASKS[name]
    flow = far(Coupling(6, mask=MASKS[name], reverse=reverse)).double()
    x = torch.randn(1, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda p: flow(p)[0].sum(0), x).squeeze(1)
    assert torch.equal(flow(x)[0][:, ~moved], x[:, ~moved])
    among_moved = jacobian[moved][:, moved]
    assert torch.equal(among_moved, torch.diag(among_moved.diagonal()))
    assert (jacobian[moved][:, ~moved] != 0).all()
    assert torch.equal(jacobian[~moved][:, moved], torch.zeros_like(jacobian[~moved][:, moved]))


def test_nice_keeps_volume_until_its_scaling():
    flow = far(make_flow("nice*4", 4))
    assert isinstance(flow, Chain)
    x = torch.randn(7, 4)
    for layer in list(flow.flows)[:-1]:
        assert (layer(x)[1] == 0).all()
    scale = flow.flows[-1](x)[1]
    torch.testing.assert_close(flow(x)[1], scale)
    assert scale[0] != 0


def test_every_coordinate_moves_in_a_named_stack():
    for name in ("nice*2", "realnvp*2", "nsf*2"):
        flow = far(make_flow(name, 5))
        x = torch.randn(1, 5)
        assert (flow(x)[0] != x).all()


def test_a_conditioner_of_ones_own():
    built = []

    def conditioner(inputs, outputs):
        net = nn.Linear(inputs, outputs)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        built.append((inputs, outputs))
        return net

    flow = Coupling(5, 2, transformer=ShiftTransformer(), conditioner=conditioner)
    assert built == [(2 + 2, 3)]
    x = torch.randn(4, 5)
    assert torch.equal(flow(x, torch.randn(4, 2))[0], x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 1}, "at least 2 dimensions"),
        ({"dim": 3, "mask": "chequered"}, "Unknown mask"),
        ({"dim": 3, "mask": [True, False]}, "needs 3 booleans"),
        ({"dim": 3, "mask": [1, 0, 1]}, "needs 3 booleans"),
        ({"dim": 3, "mask": [True] * 3}, "coordinates that do not"),
        ({"dim": 3, "mask": [False] * 3}, "coordinates that do not"),
        ({"dim": 3, "hidden_dim": 8, "conditioner": nn.Linear}, "not both"),
        ({"dim": 3, "activation": "relu", "conditioner": nn.Linear}, "not both"),
        ({"dim": 3, "skip_connections": False, "conditioner": nn.Linear}, "not both"),
        ({"dim": 3, "conditioner": 5}, "a callable"),
        ({"dim": 3, "conditioner": nn.Linear(2, 2)}, "a callable"),
        ({"dim": 3, "conditioner": lambda i, o: None}, "a callable"),
        ({"dim": 3, "conditioner": lambda i: nn.Linear(i, 4)}, r"takes \(inputs, outputs\)"),
        ({"dim": 3, "mask": ["a", "b", "c"]}, "needs 3 booleans"),
        ({"dim": 3, "conditioner": lambda i, o: nn.Linear(i, o + 1)}, r"it needs \(3, "),
        ({"dim": 3, "conditioner": lambda i, o: nn.Linear(i + 1, o)}, "fails at an input"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        Coupling(options.pop("dim"), **options)


def test_masks_travel_with_the_state():
    one, other = Coupling(5, mask="random"), Coupling(5, mask="random", reverse=True)
    far(one)
    sizes = one.moved.shape == other.moved.shape
    assert not sizes  # 3 move here, 2 there: the state of one does not fit the other silently
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(one.state_dict())


def test_a_conditioner_may_be_lazy_and_is_not_moved_by_the_look_at_it():
    flow = Coupling(3, conditioner=lambda inputs, outputs: nn.LazyLinear(outputs))
    assert flow(torch.randn(4, 3))[0].shape == (4, 3)
    nets = []

    def batched(inputs, outputs):
        nets.append(nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs)))
        return nets[-1]

    Coupling(3, conditioner=batched)
    assert nets[0][0].num_batches_tracked == 0
    assert nets[0][0].training
