"""What Sylvester layers owe beside the laws: orthogonality, and what they contain."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Chain, Permute, Planar, Sylvester
from pyro_nfvi.testing._case import perturb

KINDS = ["qr", "householder"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (5, 1), (5, 3), (20, 8), (6, 6)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_basis_is_orthonormal_far_from_initialisation(kind, dim, rank, context_dim):
    flow = Sylvester(dim, context_dim, rank=rank, kind=kind).double()
    perturb(flow, 3.0, seeded(1))
    context = double(7, context_dim) if context_dim else None
    q = flow._basis(flow.params(context))
    assert q.shape[-2:] == (dim, rank)
    eye = torch.eye(rank, dtype=torch.float64).expand(*q.shape[:-2], rank, rank)
    torch.testing.assert_close(q.mT @ q, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_points_move_in_the_span_of_the_basis_only(kind):
    flow = perturb(Sylvester(7, rank=2, kind=kind).double(), 1.0, seeded(2))
    x = double(30, 7)
    moved = flow(x)[0] - x
    assert moved.abs().max() > 0.1
    q = flow._basis(flow.params())
    torch.testing.assert_close(moved @ q @ q.mT, moved, rtol=0, atol=1e-12)
    # Two directions, not one.
    assert torch.linalg.matrix_rank(moved, rtol=1e-8) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_rank_one_is_a_planar_layer(kind):
    flow = perturb(Sylvester(4, rank=1, kind=kind).double(), 1.0, seeded(3))
    theta = flow.params()
    q = flow._basis(theta).squeeze(-1).detach()
    r, s, _ = (part.detach() for part in flow._effective(theta))
    planar = Planar.from_values(s.squeeze() * q, r.squeeze() * q, theta["b"].detach().squeeze())
    x = double(30, 4)
    for got, expected in zip(flow(x), planar(x)):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_triangular_kind_is_triangular_and_its_reverse_is_its_mirror_image():
    flow = perturb(Sylvester(4, kind="triangular").double(), 1.0, seeded(4))
    mirrored = Sylvester(4, kind="triangular", reverse=True).double()
    mirrored.load_state_dict(flow.state_dict())
    x = double(4)
    jacobian = torch.autograd.functional.jacobian(lambda point: flow(point)[0], x)
    assert torch.equal(jacobian.tril(-1), torch.zeros_like(jacobian))
    assert (jacobian.triu(1).abs() > 0).sum() == 6
    both = Chain(Permute.reversal(4), flow, Permute.reversal(4).double())
    for got, expected in zip(mirrored(x), both(x)):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "triangular"])
@pytest.mark.parametrize("size", [10.0, 1e4])
def test_diagonal_stays_above_minus_one(kind, size):
    flow = Sylvester(3, rank=3, kind=kind).double()
    for sign in (-1, 1):
        with torch.no_grad():
            flow.params.alpha.fill_(sign * size)
        r, s, slope = flow._effective(flow.params())
        product = r.diagonal(dim1=-2, dim2=-1) * s.diagonal(dim1=-2, dim2=-1)
        assert (slope > 0).all()
        assert (product > -1).all()
        x, y = torch.zeros(3, dtype=torch.float64), double(20, 3)
        assert flow(x)[1].isfinite()
        again = flow(flow.inverse(y)[0])[0]
        assert ((again - y).abs() / (1 + y.abs())).max() <= 1e-10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "svd"}, "kind to be one of qr, householder, triangular"),
        ({"rank": 4}, "rank between 1 and dim=3"),
        ({"rank": 0}, "rank between 1 and dim=3"),
        ({"kind": "triangular", "rank": 2}, "uses all 3 coordinates"),
        ({"reverse": True}, "with kind='triangular' only"),
        ({"kind": "householder", "num_reflections": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(OptionError, match=message):
        Sylvester(3, **options)
