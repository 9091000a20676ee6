"""Coordinates relative to others: densities, scores, states."""

import copy

import pytest
import torch
from torch import distributions as td

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._conditional_affine import (
    ConditionalAffine,
    ConditionalStage,
    features,
    monomials,
)
from pyro_nfvi.flows._whitened_affine import WhitenedAffine

DOUBLE = torch.float64


def stage(given, own, knots=0, seed=0, dtype=DOUBLE):
    """A stage with random coefficients."""
    noise = torch.Generator().manual_seed(seed)
    width = len(monomials(len(given))) + len(given) * knots
    coefficients = [0.02 * torch.randn(len(own), width, generator=noise) for _ in range(2)]
    made = ConditionalStage(
        torch.tensor(given),
        torch.tensor(own),
        torch.full((len(given),), 0.3),
        torch.full((len(given),), 1.2),
        torch.linspace(-2, 2, knots) if knots else torch.zeros(0),
        *coefficients,
    )
    return made.to(torch.zeros(1, dtype=dtype))


def example(*, full=True, dtype=DOUBLE):
    """Two numbers that follow nothing, two that follow one, one that follows two of these."""
    noise = torch.Generator().manual_seed(1)
    factor = torch.randn(5, 5, generator=noise).tril(-1) + torch.diag(torch.rand(5) + 0.5)
    loc = torch.randn(5, generator=noise)
    stages = [stage([4], [0, 2], knots=5, dtype=dtype), stage([2, 1], [3], seed=3, dtype=dtype)]
    factor = factor if full else factor.diagonal().clone()
    return ConditionalAffine(loc.to(dtype), factor.to(dtype), stages)


@pytest.mark.parametrize("full", [True, False])
def test_inverse_log_determinant_and_score_are_those_of_the_map(full):
    flow = example(full=full)
    x = torch.randn(20, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    y, ladj = flow(x)
    back, lost = flow.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(lost, -ladj)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow(row)[0]))(x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj)
    density = FlowDensity(flow)
    point = y.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(density.log_prob(point).sum(), point)
    _, _, pushed = flow.forward_with_score(x, -x)
    torch.testing.assert_close(pushed, wanted)


def test_its_density_is_that_of_the_conditional_normals():
    """A funnel: the second number has sd exp(v / 2)."""
    half = torch.zeros(1, 4, dtype=DOUBLE)
    half[0, 1] = 0.5
    own = ConditionalStage(
        torch.tensor([0]), torch.tensor([1]), torch.zeros(1), torch.ones(1), torch.zeros(0),
        torch.zeros(1, 4), half,
    )  # fmt: skip
    scales = torch.tensor([3.0, 1.0], dtype=DOUBLE)
    density = FlowDensity(ConditionalAffine(torch.zeros(2, dtype=DOUBLE), scales, [own.to(scales)]))
    z = density.sample_base(50)
    v, x = z.unbind(-1)
    wanted = td.Normal(0.0, 3.0).log_prob(v) + td.Normal(0.0, (v / 2).exp()).log_prob(x)
    torch.testing.assert_close(density.log_prob(z), wanted)


def test_features_are_monomials_and_splines_that_sum_to_one():
    given = torch.linspace(-1, 1, 9, dtype=DOUBLE).unsqueeze(-1)
    knots = torch.linspace(-3, 3, 13, dtype=DOUBLE)
    found = features(given, knots)
    torch.testing.assert_close(found[:, :4], given ** torch.arange(4))
    torch.testing.assert_close(found[:, 4:].sum(-1), torch.ones(9, dtype=DOUBLE))


def test_its_state_brings_the_map_back():
    flow = example(dtype=torch.float32)
    whitened = WhitenedAffine(torch.zeros(5), 1.0)
    whitened.set_conditional(flow.loc, flow.factor, flow.stages)
    assert whitened.holds_conditional
    other = WhitenedAffine(torch.zeros(5), 1.0)
    other.load_state_dict(copy.deepcopy(whitened.state_dict()))
    x = torch.randn(7, 5)
    assert torch.equal(other(x)[0], flow(x)[0])
    other.set_fixed(torch.zeros(5), torch.eye(5))
    assert not other.holds_conditional
    assert torch.equal(other(x)[0], x)


@pytest.mark.parametrize(
    "stages",
    [
        [stage([0], [1]), stage([2], [1])],  # twice
        [stage([1], [0]), stage([2], [1])],  # follows a later one
        [stage([0], [0])],  # itself
        [stage([0], [5])],  # out of the vector
    ],
)
def test_stages_that_do_not_belong_together_are_refused(stages):
    loc = torch.zeros(3, dtype=DOUBLE)
    with pytest.raises(ShapeError, match="each coordinate stands once at most"):
        ConditionalAffine(loc, torch.ones_like(loc), stages)


def test_a_point_of_another_precision_is_refused():
    with pytest.raises(ShapeError, match="float64; got a point of torch.float32"):
        example()(torch.zeros(5))
