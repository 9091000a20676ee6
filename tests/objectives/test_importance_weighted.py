"""Bounds of several draws: closed forms, two gradients with one mean, bad particles."""

import math

import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import DiagonalAffine, make_flow
from pyro_nfvi.objectives import ImportanceELBO, PathELBO, RenyiELBO, TotalELBO
from pyro_nfvi.objectives._make_objective import make_objective

DIM = 3
ORDERS = [-1.0, 0.0, 0.5, 2.0]


def normal(z, loc=0.0, scale=1.0):
    return -0.5 * (((z - loc) / scale).square() + math.log(2 * math.pi * scale**2)).sum(-1)


def gaussian(scale=0.8, loc=0.3):
    flow = DiagonalAffine(DIM).double()
    one = torch.ones(DIM, dtype=torch.float64)
    flow.set_affine(loc * one, scale * one)
    return flow


def numbers(flow):
    """Location and scale, differentiable in the flow's parameters."""
    loc = flow(torch.zeros(1, DIM, dtype=torch.float64))[0][0]
    return loc, flow(torch.ones(1, DIM, dtype=torch.float64))[0][0] - loc


def renyi_bound(flow, alpha):
    """log p - D_alpha(q || N(0, I)) in closed form; Gil, Alajaji and Linder 2013, table 2."""
    loc, scale = numbers(flow)
    mixed = alpha + (1 - alpha) * scale.square()
    divergence = -scale.log() - mixed.log() / (2 * (alpha - 1)) + alpha * loc.square() / (2 * mixed)
    return -divergence.sum()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradient(objective, flow, eps, target=normal):
    estimate = objective(FlowDensity(flow), target, eps)
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(estimate.surrogate, list(flow.parameters()))]
    )


@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("estimator", ["dreg", "total"])
def test_with_many_draws_the_bound_is_renyis(alpha, estimator):
    # One term of 200,000 draws, whose bias of order 1/K is below its noise. The noise of the
    # bound is sd(w^(1-alpha)) / mean / sqrt(K) / |1 - alpha|; false alarms: |z| > 5, 6e-7 each.
    # q is wide enough for all powers of the weights to have a variance.
    flow, count = gaussian(1.1), 200_000
    exact = renyi_bound(flow, alpha)
    eps = draw(count, DIM)
    objective = RenyiELBO(alpha, count, estimator)
    estimate = objective(FlowDensity(flow), normal, eps)
    power = ((1 - alpha) * (estimate.log_w - estimate.log_w.mean())).exp()
    noise = float(power.std() / power.mean()) / math.sqrt(count) / abs(1 - alpha)
    assert abs(float(estimate.bound) - float(exact.detach())) < 5 * noise + 1e-5
    # The gradient too, which is 0 for alpha = 0: its noise is below 2e-3 a number.
    found = gradient(objective, flow, eps)
    wanted = -torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(exact, list(flow.parameters()))]
    )
    assert float((found - wanted).norm()) < 0.02 + 0.02 * float(wanted.norm())


@pytest.mark.parametrize("alpha", ORDERS)
def test_both_gradients_have_one_mean(alpha):
    # The total gradient is that of the bound as it stands, so unbiased; a paired z-test says the
    # same of the other. 20 terms of 4 draws in each of 500 pairs; false alarms: |z| > 5 in one of
    # 6 numbers in 4 tests, 2e-5.
    flow = gaussian()
    pairs = []
    for _ in range(500):
        eps = draw(80, DIM)
        pairs.append(
            gradient(RenyiELBO(alpha, 4, "dreg"), flow, eps)
            - gradient(RenyiELBO(alpha, 4, "total"), flow, eps)
        )
    difference = torch.stack(pairs)
    z = difference.mean(0) / (difference.std(0) / math.sqrt(len(pairs)))
    assert (z.abs() < 5).all()


def test_the_total_gradient_is_that_of_the_bound():
    flow, eps = gaussian(), draw(12, DIM)
    z, log_q = FlowDensity(flow).push(eps)
    log_w = (normal(z) - log_q).reshape(3, 4)
    bound = (log_w.logsumexp(-1) - math.log(4)).mean()
    wanted = [-g.reshape(-1) for g in torch.autograd.grad(bound, list(flow.parameters()))]
    objective = ImportanceELBO(4, "total")
    torch.testing.assert_close(gradient(objective, flow, eps), torch.cat(wanted))
    torch.testing.assert_close(objective(FlowDensity(flow), normal, eps).bound, bound.detach())


def test_importance_bounds_rise_with_the_draws_up_to_the_evidence():
    # One-sided: each bound is above the one before by far more than its noise.
    flow, eps = gaussian(1.5), draw(60_000, DIM)
    bounds = [
        float(ImportanceELBO(k)(FlowDensity(flow), normal, eps).bound) for k in (1, 4, 20, 1000)
    ]
    assert bounds == sorted(bounds)
    torch.testing.assert_close(
        bounds[0], float(renyi_bound(flow, 1.0001).detach()), atol=0.05, rtol=0
    )
    assert abs(bounds[-1]) < 0.02  # log evidence 0


@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("formula", ["affine", "iaf*2"])
def test_the_dreg_gradient_vanishes_where_q_is_p(alpha, formula):
    flow = make_flow(formula, DIM).double()
    frozen = make_flow(formula, DIM).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    frozen.load_state_dict(flow.state_dict())
    objective = RenyiELBO(alpha, 4)
    found = gradient(objective, flow, draw(8, DIM), FlowDensity(frozen).log_prob)
    assert found.abs().max() < 1e-7


@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (RenyiELBO(1.0, 4), PathELBO()),
        (RenyiELBO(1.0, 4, "total"), TotalELBO()),
        (ImportanceELBO(1), PathELBO()),
        (ImportanceELBO(1, "total"), TotalELBO()),
        (RenyiELBO(0.3, 1), PathELBO()),
    ],
)
def test_the_elbo_is_a_special_case(objective, plain):
    flow, eps = gaussian(), draw(16, DIM)
    torch.testing.assert_close(gradient(objective, flow, eps), gradient(plain, flow, eps))
    one, other = (o(FlowDensity(flow), normal, eps).bound for o in (objective, plain))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(objective.terms(torch.arange(16.0)).mean(), torch.tensor(7.5))


@pytest.mark.parametrize("estimator", ["dreg", "total"])
def test_gradient_of_the_models_own_parameters(estimator):
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    flow, eps = gaussian(), draw(6, DIM)
    objective = RenyiELBO(0.4, 3, estimator)
    estimate = objective(FlowDensity(flow), lambda z: normal(z, shift), eps, [shift])
    (found,) = torch.autograd.grad(estimate.surrogate, shift)
    z, log_q = FlowDensity(flow).push(eps)
    log_w = (normal(z, shift) - log_q).reshape(2, 3)
    bound = ((0.6 * log_w).logsumexp(-1) - math.log(3)).mean() / 0.6
    torch.testing.assert_close(found, -torch.autograd.grad(bound, shift)[0])


@pytest.mark.parametrize("estimator", ["dreg", "total"])
def test_a_bad_particle_has_weight_zero_and_a_bad_term_is_left_out(estimator):
    flow, eps = gaussian(), draw(12, DIM)

    def target(z):
        bad = torch.tensor([k in (1, 4, 5, 6, 7) for k in range(12)])
        return torch.where(bad, torch.nan, normal(z))

    objective = ImportanceELBO(4, estimator)
    estimate = objective(FlowDensity(flow), target, eps)
    assert int(estimate.num_bad) == 5
    z, log_q = FlowDensity(flow).push(eps)
    log_w = normal(z) - log_q
    first = log_w[[0, 2, 3]].logsumexp(0) - math.log(4)
    last = log_w[8:].logsumexp(0) - math.log(4)
    torch.testing.assert_close(estimate.bound, (first + last).detach() / 2)
    grads = torch.autograd.grad(estimate.surrogate, list(flow.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    if estimator == "total":
        wanted = torch.autograd.grad(-(first + last) / 2, list(flow.parameters()))
        for one, other in zip(grads, wanted):
            torch.testing.assert_close(one, other)


def test_no_particle_at_all():
    flow = gaussian()
    estimate = ImportanceELBO(4)(FlowDensity(flow), lambda z: z.sum(-1) * torch.nan, draw(8, DIM))
    assert torch.isnan(estimate.bound)
    assert int(estimate.num_bad) == 8


def test_weights_too_large_for_the_exponential_function():
    flow, eps = gaussian(), draw(8, DIM)
    for offset in (1e4, -1e4):
        estimate = RenyiELBO(-2.0, 4)(FlowDensity(flow), lambda z, c=offset: normal(z) + c, eps)
        plain = RenyiELBO(-2.0, 4)(FlowDensity(flow), normal, eps)
        torch.testing.assert_close(estimate.bound, plain.bound + offset, rtol=1e-9, atol=1e-7)


def test_options():
    with pytest.raises(OptionError, match="num_particles is to be a multiple; got 6"):
        ImportanceELBO(4).check(6)
    with pytest.raises(OptionError, match="alpha needs to be a finite number"):
        RenyiELBO(math.inf)
    with pytest.raises(OptionError, match="num_samples needs"):
        ImportanceELBO(0)
    with pytest.raises(OptionError, match="'dreg' or 'total'"):
        RenyiELBO(0.5, 4, "path")
    assert make_objective("iw").estimator == "total"
    assert make_objective("dreg").estimator == "dreg"
    assert make_objective("renyi").name == "renyi(alpha=0.5, num_samples=8, dreg)"
