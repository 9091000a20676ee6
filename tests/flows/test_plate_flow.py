"""The flow over rows of plates: the laws of all flows, weights, and rows alone."""

import pytest
import torch

from pyro_nfvi._vjp import vjp
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.flows._plate_flow import PlateBlock, PlateFlow
from pyro_nfvi.testing import check_flow
from pyro_nfvi.testing._case import perturb
from pyro_nfvi.testing._check_flow import LAWS

SLOW = {"compile", "compile inverse", "make_fx inverse", "make_fx", "density"}


def blocks_of(dim):
    """Globals of 1 or 2, rows of two plates that cross, and rows below both; as far as they fit."""
    if dim < 5:
        return [PlateBlock("", torch.arange(dim).reshape(1, dim))]
    if dim == 5:
        zeros = torch.zeros(2, dtype=torch.long)
        # Out of order, as sites of one row stand apart in the vector.
        return [
            PlateBlock("", torch.tensor([[3]])),
            PlateBlock("a", torch.tensor([[0, 2], [4, 1]]), {"": zeros}),
        ]
    assert dim == 14
    rows = torch.arange(6)
    return [
        PlateBlock("", torch.tensor([[0, 13]])),
        PlateBlock("a", torch.tensor([[1], [2]]), {"": torch.zeros(2).long()}),
        PlateBlock("b", torch.tensor([[12], [11], [10]]), {"": torch.zeros(3).long()}),
        PlateBlock(
            "a/b",
            torch.arange(4, 10).reshape(6, 1),
            {"": torch.zeros(6).long(), "a": rows // 3, "b": rows % 3},
        ),
        PlateBlock("alone", torch.tensor([[3]])),
    ]


def plate_flow(dim, context_dim=0, *, code=2, formula="nsf-ar", options=None):
    blocks = blocks_of(dim)
    widths = {block.name: block.width for block in blocks}
    flows, codes = {}, {}
    for block in blocks:
        size = sum(widths[name] for name in block.parents)
        if code and block.name in ("a", "a/b"):
            codes[block.name] = torch.nn.Parameter(torch.randn(block.num_rows, code))
            size += code
        name = "iaf*2" if block.name == "" else formula
        flows[block.name] = make_flow(name, block.width, size, **(options or {"hidden_dim": 8}))
    return PlateFlow(blocks, flows, codes)


@pytest.mark.parametrize(
    "law", [pytest.param(law, marks=[pytest.mark.slow] * (law in SLOW)) for law in LAWS]
)
def test_it_keeps_the_laws_of_flows(law):
    # The spline's inverse by autograd, which the score is held against, loses digits in tails.
    slack = {"score": 10.0}
    check_flow(plate_flow, dims=(1, 5, 14), context_dims=(0,), laws=[law], slack=slack)


@pytest.mark.parametrize("formula", ["iaf*2", "planar*2", "affine"])
def test_pushed_scores_are_those_of_the_density_of_any_local_flow(formula):
    check_flow(
        lambda d, c: plate_flow(d, c, formula=formula, options={}),
        dims=(5, 14), context_dims=(0,), dtypes=(torch.float64,),
        laws=["score", "round trip", "ladj"],
    )  # fmt: skip


def weighted(flow, weights):
    from dataclasses import replace

    blocks = [replace(b, weight=weights.get(b.name, 1.0)) for b in flow.blocks]
    return flow.at(blocks)


def test_rows_count_by_their_weights_in_densities_and_scores():
    torch.manual_seed(1)
    flow = perturb(plate_flow(14).double(), 0.5)
    weights = {"a": 3.0, "b": 0.5, "a/b": 1.5}
    other = weighted(flow, weights)
    count = torch.empty(14, dtype=torch.float64)
    for block in other.blocks:
        count[block.positions] = block.weight
    x = torch.randn(4, 14, dtype=torch.float64)

    # By definition: each row's conditional log density, times the row's weight.
    def log_q(y):
        eps, ladj = other.inverse(y)
        return -0.5 * (count * eps.square()).sum(-1) + ladj

    y, ladj, score = other.forward_with_score(x, -count * x)
    torch.testing.assert_close(y, flow(x)[0])
    (expected,) = vjp(log_q, y.detach())((torch.ones(4, dtype=torch.float64),))
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(-0.5 * (count * x.square()).sum(-1) - ladj, log_q(y))
    # Weights of one block at a time add up to the whole: the parts are those of the rows.
    parts = [weighted(flow, {b.name: 2.0})(x)[1] - flow(x)[1] for b in flow.blocks]
    torch.testing.assert_close(sum(parts), flow(x)[1])


def test_some_rows_are_mapped_as_among_all():
    torch.manual_seed(1)
    flow = perturb(plate_flow(14).double(), 0.5)
    x = torch.randn(4, 14, dtype=torch.float64)
    y, _ = flow(x)
    # Row 1 of a, rows 2 and 0 of b, the two below both, and the globals.
    kept = [0, 13, 2, 10, 12, 9, 7, 3]
    few = flow.at(
        [
            PlateBlock("", torch.tensor([[0, 1]])),
            PlateBlock(
                "a", torch.tensor([[2]]), {"": torch.zeros(1).long()}, rows=torch.tensor([1])
            ),
            PlateBlock("b", torch.tensor([[3], [4]]), {"": torch.zeros(2).long()}),
            PlateBlock(
                "a/b", torch.tensor([[5], [6]]),
                {"": torch.zeros(2).long(), "a": torch.zeros(2).long(), "b": torch.arange(2)},
                rows=torch.tensor([5, 3]),
            ),
            PlateBlock("alone", torch.tensor([[7]])),
        ]
    )  # fmt: skip
    torch.testing.assert_close(few(x[:, kept])[0], y[:, kept])
    few(x[:, kept])[1].sum().backward()
    code = flow.code_of("a/b")
    assert (code.grad.abs().sum(1) > 0).tolist() == [False, False, False, True, False, True]


def test_what_does_not_fit_is_an_error():
    block = PlateBlock("", torch.tensor([[0, 1]]))
    rows = PlateBlock("a", torch.tensor([[2], [3]]), {"": torch.zeros(2).long()})
    with pytest.raises(OptionError, match="dim=2 and context_dim=0; got dim=3"):
        PlateFlow([block], {"": make_flow("iaf", 3)})
    with pytest.raises(OptionError, match="parents before children"):
        PlateFlow([rows, block], {})
    with pytest.raises(OptionError, match="'a' needs a code of shape"):
        PlateFlow([block, rows], {}, {"a": torch.zeros(3, 1)})
    with pytest.raises(OptionError, match="no block 'b'"):
        PlateFlow([block, rows], {"b": None})
