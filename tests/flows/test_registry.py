"""Names and formulas of flows."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Chain, Sylvester, make_flow
from pyro_nfvi.flows._planar import PlanarChain
from pyro_nfvi.flows._registry import FLOW_NAMES

#: Families that split the coordinates need two.
FROM_TWO = {"nice", "realnvp", "nsf", "glow"}


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize(
    ("name", "dim"),
    [(name, dim) for name in FLOW_NAMES for dim in (1, 4) if dim > 1 or name not in FROM_TWO],
)
def test_every_name_builds_a_flow_that_starts_as_the_identity(name, dim, context_dim):
    for formula in (name, f"{name}*3"):
        flow = make_flow(formula, dim, context_dim)
        assert (flow.dim, flow.context_dim) == (dim, context_dim)
        x = torch.randn(5, dim)
        y, ladj = flow(x, torch.randn(5, context_dim) if context_dim else None)
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ladj, torch.zeros(5), rtol=0, atol=1e-5)


def test_planar_layers_are_fused():
    flow = make_flow("planar*16", 3)
    assert isinstance(flow, PlanarChain)
    assert flow.num_layers == 16


@pytest.mark.parametrize(("formula", "layers"), [("iaf*3", 3), ("radial*2|tril", 3), ("maf", 2)])
def test_layers_are_counted(formula, layers):
    flow = make_flow(formula, 3)
    assert isinstance(flow, Chain)
    assert len(flow.flows) == layers


def test_parts_run_from_the_base_to_the_posterior():
    flow = make_flow(" iaf * 2 | planar*4 ", 3)
    assert [type(part).__name__ for part in flow.flows] == [
        "Autoregressive", "Autoregressive", "PlanarChain",
    ]  # fmt: skip


def test_options_reach_the_families_that_know_them():
    flow = make_flow("iaf*2|sylvester", 4, hidden_dim=7, rank=2)
    assert len(flow.flows[0].net.biases[0]) == 7
    assert flow.flows[2].rank == 2


def test_triangular_sylvester_layers_alternate():
    flow = make_flow("sylvester*3", 4, kind="triangular")
    assert [part.reverse for part in flow.flows] == [False, True, False]
    assert all(isinstance(part, Sylvester) for part in flow.flows)


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("plannar*4", {}, "Did you mean 'planar'"),
        ("iaf*0", {}, "asks for no layer"),
        ("iaf*-1", {}, "cannot be read"),
        ("iaf**2", {}, "cannot be read"),
        ("iaf|", {}, "cannot be read"),
        ("", {}, "cannot be read"),
        ("iaf", {"hiden_dim": 3}, "takes no option hiden_dim.*hidden_dim"),
        (3, {}, "needs a formula such as 'iaf\\*2'; got int"),
    ],
)
def test_formulas_that_cannot_be_read(formula, options, message):
    with pytest.raises(OptionError, match=message):
        make_flow(formula, 3, **options)
