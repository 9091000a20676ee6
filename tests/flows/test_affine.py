"""Affine maps and permutations: against torch's normal distributions and index arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Affine, DiagonalAffine, LowerTriangular, Permute
from pyro_nfvi.testing._case import perturb


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def matrix(flow):
    zero = torch.zeros(flow.dim, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: flow(x)[0], zero), flow(zero)[0]


@pytest.mark.parametrize("family", [DiagonalAffine, LowerTriangular])
def test_pushed_standard_normal_is_the_multivariate_normal(family):
    flow = perturb(family(4).double(), 1.0, torch.Generator().manual_seed(0))
    scale_tril, loc = matrix(flow)
    assert torch.equal(scale_tril.triu(1), torch.zeros(4, 4).double())
    assert (scale_tril.diagonal() > 0).all()
    assert (scale_tril.tril(-1) != 0).any() == (family is LowerTriangular)
    normal = MultivariateNormal(loc.detach(), scale_tril=scale_tril.detach())
    z = 2 * double(20, 4)
    torch.testing.assert_close(FlowDensity(flow).log_prob(z), normal.log_prob(z))


def test_bound_affine_uses_the_numbers_it_is_given():
    loc, scale = double(3), double(3, seed=1).exp()
    tril = torch.eye(3).double() + double(3, 3, seed=2).tril(-1)
    for flow, scale_tril in (
        (Affine(loc, scale), torch.diag(scale)),
        (Affine(loc, scale_tril=tril), tril),
    ):
        normal = MultivariateNormal(loc, scale_tril=scale_tril)
        z = double(20, 3, seed=3)
        torch.testing.assert_close(FlowDensity(flow).log_prob(z), normal.log_prob(z))
        assert list(flow.parameters()) == []


def test_bound_affine_sends_gradients_to_the_owner():
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    y, ladj = Affine(loc, scale)(torch.ones(2, 3))
    (y.sum() + ladj.sum()).backward()
    torch.testing.assert_close(loc.grad, torch.full((3,), 2.0))
    torch.testing.assert_close(scale.grad, torch.full((3,), 4.0))


def test_bound_affine_needs_one_scale():
    for scales in ({}, {"scale": torch.ones(2), "scale_tril": torch.eye(2)}):
        with pytest.raises(OptionError, match="one of scale and scale_tril"):
            Affine(torch.zeros(2), **scales)


def test_scale_stays_positive():
    flow = DiagonalAffine(3).double()
    with torch.no_grad():
        flow.params.scale.copy_(torch.tensor([-30.0, 0.0, 1e4]))
    scale = matrix(flow)[0].diagonal()
    assert (scale > 0).all()
    assert scale[1] == 1


def test_permutation_moves_coordinates_as_it_says():
    x = torch.tensor([10.0, 11.0, 12.0, 13.0])
    assert Permute([2, 0, 3, 1])(x)[0].tolist() == [12, 10, 13, 11]
    assert Permute([2, 0, 3, 1]).inverse(x)[0].tolist() == [11, 13, 10, 12]
    mirror = Permute.reversal(4)
    assert mirror(x)[0].tolist() == [13, 12, 11, 10]
    assert torch.equal(mirror(mirror(x)[0])[0], x)


def test_random_permutation_depends_on_its_seed_alone():
    before = torch.get_rng_state()
    orders = [Permute.random(30, seed=seed).order for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [0, 2, 3]])
def test_what_is_no_permutation(order):
    with pytest.raises(OptionError, match="once"):
        Permute(order)


@pytest.mark.parametrize("family", [DiagonalAffine, LowerTriangular])
def test_a_context_scales_as_far_as_it_needs(family):
    # y = 15 x given 1, and x / 15 given -1.
    flow = family(2, 1)
    sizes = torch.tensor([[1.0], [-1.0]])
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        _, ladj = flow(torch.zeros(2, 2), sizes)
        (ladj - 2 * math.log(15) * sizes[:, 0]).square().sum().backward()
        optimizer.step()
    _, ladj = flow(torch.zeros(2, 2), sizes)
    assert ladj.tolist() == pytest.approx([2 * math.log(15), -2 * math.log(15)], abs=0.1)


def test_a_triangular_map_of_many_dimensions_keeps_its_inverse_at_any_context():
    flow = LowerTriangular(64, 2).double()
    perturb(flow, 5.0)
    x, context = double(20, 64), 10 * double(20, 2, seed=1)
    lost = (flow.inverse(flow(x, context)[0], context)[0] - x).abs().max()
    assert lost < 1e-6


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(OptionError, match="positive scale"):
        DiagonalAffine(2).set_affine(torch.zeros(2), torch.tensor([1.0, scale]))
