"""Chain and Inverse, and what the contract refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import (
    Affine,
    Autoregressive,
    BatchNorm,
    Chain,
    Coupling,
    DiagonalAffine,
    Elementwise,
    Permute,
    Planar,
    Radial,
    make_flow,
)
from pyro_nfvi.flows._autoregressive import iaf, maf
from pyro_nfvi.flows._base import Inverse
from pyro_nfvi.testing._case import perturb


def far(flow):
    return perturb(flow.double(), 0.5, torch.Generator().manual_seed(0))


def test_chain_runs_from_the_first_to_the_last():
    first, second = far(Planar(2)), far(Radial(2))
    x = torch.randn(5, 2, dtype=torch.float64)
    middle, ladj_first = first(x)
    y, ladj_second = second(middle)
    got_y, got_ladj = Chain(first, second)(x)
    assert torch.equal(got_y, y)
    torch.testing.assert_close(got_ladj, ladj_first + ladj_second)


def test_chain_gives_the_context_to_those_that_take_it():
    chain = far(Chain(Planar(2), DiagonalAffine(2, context_dim=3)))
    assert chain.context_dim == 3
    x = torch.randn(5, 2, dtype=torch.float64)
    first, second = (chain(x, c)[0] for c in torch.randn(2, 3, dtype=torch.float64))
    assert not torch.allclose(first, second)
    with pytest.raises(ShapeError, match="needs a context"):
        chain(x)


@pytest.mark.parametrize(
    ("flows", "message"),
    [
        ([], "at least one flow"),
        ([Planar(2), Planar(3)], r"dims \[2, 3\]"),
        ([Planar(2, 1), Planar(2, 3)], r"context_dims \[1, 3\]"),
        ([Planar(2), nn.Linear(2, 2)], "Flow objects; got Linear"),
    ],
)
def test_chain_refuses_what_does_not_fit(flows, message):
    with pytest.raises(OptionError, match=message):
        Chain(*flows)


def test_chain_is_as_hard_to_invert_as_its_hardest_part():
    assert Chain(DiagonalAffine(2), Radial(2)).inverse_kind == "exact"
    assert Chain(DiagonalAffine(2), iaf(2)).inverse_kind == "sequential"


def test_inverse_shares_its_parameters_and_undoes_itself():
    flow = far(iaf(3, hidden_dim=8))
    back = flow.inv
    assert back.inv is flow
    assert {id(p) for p in back.parameters()} == {id(p) for p in flow.parameters()}
    x = torch.randn(4, 3, dtype=torch.float64)
    for got, expected in zip(back(x), flow.inverse(x)):
        assert torch.equal(got, expected)


def test_no_parameter_stands_under_two_names():
    flow = Chain(Planar(2), maf(2), Radial(2))
    names = [name for name, _ in flow.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in flow.parameters()})


@pytest.mark.parametrize("dim", [0, -1, 2.0, True, "2", None])
def test_dim_must_be_a_positive_integer(dim):
    with pytest.raises(OptionError, match="Planar: dim needs"):
        Planar(dim)


@pytest.mark.parametrize("context_dim", [-1, 1.0, True, None])
def test_context_dim_must_be_a_natural_number(context_dim):
    with pytest.raises(OptionError, match="Planar: context_dim needs"):
        Planar(2, context_dim)


def test_messages_say_what_came_and_what_to_do():
    with pytest.raises(ShapeError, match=r"Planar\(dim=2.*\(\*b, 2\); got \(5, 3\)"):
        Planar(2)(torch.zeros(5, 3))
    with pytest.raises(ShapeError, match=r"torch\.int64.*\.to\(dtype\)"):
        Planar(2)(torch.zeros(5, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\(5, 4\).*context_dim=4"):
        Planar(2)(torch.zeros(5, 2), torch.zeros(5, 4))
    with pytest.raises(ShapeError, match=r"needs a context.*context_dim=0"):
        Planar(2, 3)(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=r"\(5, 2\).*\(4, 3\).*do not broadcast"):
        Planar(2, 3)(torch.zeros(5, 2), torch.zeros(4, 3))


WRONG = {
    "dtype": (lambda x: x.double(), None, ShapeError, "parameters of torch.float32"),
    "half": (lambda x: x.half(), None, ShapeError, "torch.float16"),
    "list": (lambda x: x.tolist(), None, ShapeError, "as_tensor"),
    "integers": (lambda x: x.long(), None, ShapeError, "floating-point"),
    "context list": (lambda x: x, [[1.0, 2.0]], ShapeError, "as_tensor"),
    "context dtype": (lambda x: x, torch.ones(4, 2).double(), ShapeError, "torch.float64"),
    "context integers": (lambda x: x, torch.ones(4, 2).long(), ShapeError, "torch.int64"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["iaf", "realnvp", "nsf", "planar", "bnaf", "ffjord", "affine"])
def test_wrong_points_and_contexts_are_named(name, wrong):
    change, context, error, words = WRONG[wrong]
    flow = make_flow(name, 3, 0 if context is None else 2)
    for call in (flow, flow.inverse):
        with pytest.raises(error, match=words):
            call(change(torch.randn(4, 3)), context)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_flow("sylvester", "3"),
        lambda: make_flow("relu", 0),
        lambda: make_flow("planar", 3, 2, hidden_dim=0),
        lambda: make_flow("radial", 3, 2, hidden_dim=2.5),
        lambda: make_flow("nsf-ar", 2, bins=2.5),
        lambda: make_flow("nsf-ar", 2, bins=1),
        lambda: make_flow("nsf", 2, bound="5"),
        lambda: make_flow("nsf", 2, bound=0.0),
        lambda: make_flow("naf", 2, units=1.5),
        lambda: make_flow("ffjord", 2, tolerance="small"),
        lambda: BatchNorm(2, momentum=0.0),
        lambda: BatchNorm(2, momentum=2.0),
        lambda: Permute([0.5, 1.0]),
        lambda: Inverse(torch.nn.Linear(2, 2)),
        lambda: Affine(torch.zeros(2), torch.ones(3)),
        lambda: Elementwise(2, transformer="cubic"),
        lambda: Autoregressive(2, transformer="cubic"),
        lambda: Coupling(2, transformer="cubic"),
    ],
)
def test_wrong_options_are_named(make):
    with pytest.raises(OptionError, match=r"need|takes"):
        make()


def test_layers_run_in_sampling_order_and_make_the_whole():
    torch.manual_seed(0)
    flow = Chain(
        Planar(3, 2), Chain(Radial(3, 2), Permute([1, 2, 0])).inv, Chain(DiagonalAffine(3)).inv.inv
    ).double()
    for part in flow.layers():
        perturb(part.flow, 0.5)
    assert [(type(one.flow).__name__, one.inverted, one.path) for one in flow.layers()] == [
        ("Planar", False, "flows.0"),
        ("Permute", True, "flows.1.flow.flows.1"),
        ("Radial", True, "flows.1.flow.flows.0"),
        ("DiagonalAffine", False, "flows.2.flows.0"),
    ]
    assert all(flow.get_submodule(one.path) is one.flow for one in flow.layers())
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    y, total = flow(x, context)
    for one in flow.layers():
        x, ladj = one.map(x, context if one.flow.context_dim else None)
        total = total - ladj
    torch.testing.assert_close(x, y)
    torch.testing.assert_close(total, torch.zeros(5).double())


def test_a_flow_that_combines_no_others_is_its_own_layer():
    flow = Planar(2)
    assert flow.layers() == [(flow, False, "")]
