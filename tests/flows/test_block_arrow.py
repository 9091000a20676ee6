"""Block-arrow matrices against dense ones."""

import copy

import pytest
import torch

from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow
from pyro_nfvi.flows._block_arrow_affine import BlockArrowAffine
from pyro_nfvi.flows._low_rank_affine import LowRankAffine
from pyro_nfvi.flows._whitened_affine import WhitenedAffine
from tests.catalog import arrow_factor


def nested(*, shuffled):
    """Two globals, three rows of two, seven of three below these, with random numbers."""
    gen = torch.Generator().manual_seed(0)
    places = torch.randperm(29, generator=gen) if shuffled else torch.arange(29)
    rows = torch.randint(0, 3, (7,), generator=gen)
    zero = torch.zeros(7, dtype=torch.long)
    arrow = BlockArrow.tree(
        [
            ArrowBlock(places[None, :2]),
            ArrowBlock(places[2:8].view(3, 2), ((0, zero[:3]),)),
            ArrowBlock(places[8:].view(7, 3), ((0, zero), (1, rows))),
        ]
    )

    def number(like):
        return 0.5 * torch.randn(like.shape, generator=gen, dtype=like.dtype)

    start = ArrowFactor.diagonal(arrow, torch.ones(29, dtype=torch.float64))
    trils = tuple(number(one).tril(-1) + torch.diag_embed(number(one).diagonal(
        dim1=-2, dim2=-1).exp()) for one in start.trils)  # fmt: skip
    return ArrowFactor(arrow, trils, tuple(tuple(map(number, one)) for one in start.weights))


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_product_is_that_of_the_dense_matrix(shuffled):
    factor = nested(shuffled=shuffled)
    eye = torch.eye(29, dtype=torch.float64)
    dense = factor.push(eye).T
    x = torch.randn(4, 5, 29, dtype=torch.float64)
    close = torch.testing.assert_close
    close(factor.push(x), x @ dense.T)
    close(factor.solve(factor.push(x)), x)
    close(factor.pull(x), x @ dense)
    close(factor.pull(factor.push_score(x)), x)
    close(factor.log_det, torch.linalg.slogdet(dense)[1])
    covariance = dense @ dense.T
    close(factor.variances, covariance.diagonal())
    close(factor.precisions, torch.linalg.inv(covariance).diagonal())
    units = torch.rand(29, dtype=torch.float64) + 0.5
    close(factor.scaled(units).push(x), units * factor.push(x))


def test_a_state_makes_the_same_map():
    flow = BlockArrowAffine(torch.arange(5.0), arrow_factor(5))
    again = BlockArrowAffine.from_state(flow.state_dict(), torch.zeros(5))
    x = torch.randn(3, 5)
    assert torch.equal(again(x)[0], flow(x)[0])
    state = flow.state_dict() | {"tril_1": torch.ones(1, 1, 1)}
    with pytest.raises(ShapeError, match="does not fit"):
        BlockArrowAffine.from_state(state, torch.zeros(5))
    state = flow.state_dict() | {"positions_0": torch.tensor([[0]])}
    with pytest.raises(OptionError, match="exactly one block"):
        BlockArrowAffine.from_state(state, torch.zeros(5))


def test_a_whitened_map_takes_the_kind_of_the_state_that_it_loads():
    arrow, plain = (WhitenedAffine(torch.zeros(5), 1.0, rank=2) for _ in range(2))
    arrow.set_arrow(torch.arange(5.0), arrow_factor(5))
    before = copy.deepcopy(plain.state_dict())
    x = torch.randn(3, 5)
    plain.load_state_dict(arrow.state_dict())
    assert torch.equal(plain(x)[0], arrow(x)[0])
    assert torch.equal(copy.deepcopy(arrow)(x)[0], arrow(x)[0])
    plain.load_state_dict(before)
    assert isinstance(plain.fixed, LowRankAffine)
    assert torch.equal(plain(x)[0], x)
    arrow.set_fixed(torch.zeros(5), 2 * torch.ones(5))
    assert torch.equal(arrow(x)[0], 2 * x)


def test_what_is_no_block_arrow_is_refused():
    one, two = torch.tensor([[0]]), torch.tensor([[1], [2]])
    zero = torch.zeros(2, dtype=torch.long)
    with pytest.raises(OptionError, match="before it"):
        BlockArrow.tree([ArrowBlock(one), ArrowBlock(two, ((0, zero + 1),))])
    crossed = [ArrowBlock(two, ()), ArrowBlock(two + 2, ())]
    both = ArrowBlock(torch.tensor([[0], [5]]), ((0, zero), (1, zero)))
    with pytest.raises(OptionError, match="no chain"):
        BlockArrow.tree([*crossed, both])
    with pytest.raises(OptionError, match="with a rank"):
        WhitenedAffine(torch.zeros(5), 1.0).set_arrow(torch.zeros(5), arrow_factor(5))
