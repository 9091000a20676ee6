"""Objectives: unbiased gradients, and no noise in the path gradient where q equals p."""

import math

import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Chain, DiagonalAffine, LowerTriangular, make_flow
from pyro_nfvi.objectives import Estimate, Linear, Objective, PathELBO, TotalELBO
from pyro_nfvi.objectives._make_objective import make_objective

DIM = 3
both = pytest.mark.parametrize("objective", [PathELBO(), TotalELBO()], ids=["path", "total"])


def perturbed(flow, size=0.3):
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return flow.double()


def standard_normal(z):
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def gaussian_kl(flow):
    """KL(q || N(0, I)) of an affine flow, in closed form, differentiable."""
    loc = flow(torch.zeros(1, DIM, dtype=torch.float64))[0][0]
    columns = flow(torch.eye(DIM, dtype=torch.float64))[0] - loc
    logdet = torch.linalg.slogdet(columns)[1]
    return 0.5 * (columns.square().sum() + loc.square().sum() - DIM) - logdet


def gradient(objective, flow, eps, target=standard_normal):
    estimate = objective(FlowDensity(flow), target, eps)
    found = torch.autograd.grad(estimate.surrogate, list(flow.parameters()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(flow.parameters(), found)
        ]
    )


@both
@pytest.mark.parametrize("make", [DiagonalAffine, LowerTriangular])
def test_gradient_is_unbiased(objective, make):
    # z-test of 1000 independent gradients against the closed form. False alarms: |z| > 5 for one
    # of at most 9 numbers in 4 tests has probability below 4 * 9 * 6e-7 = 2e-5.
    flow = perturbed(make(DIM))
    exact = torch.autograd.grad(gaussian_kl(flow), list(flow.parameters()))
    exact = torch.cat([g.reshape(-1) for g in exact])
    draws = torch.stack(
        [gradient(objective, flow, torch.randn(2, DIM, dtype=torch.float64)) for _ in range(1000)]
    )
    z = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)
    assert (z.abs() < 5).all()


@both
def test_bound_is_the_elbo(objective):
    # False alarms: |z| > 5 has probability 6e-7.
    flow = perturbed(LowerTriangular(DIM))
    estimate = objective(
        FlowDensity(flow), standard_normal, torch.randn(20_000, DIM, dtype=torch.float64)
    )
    se = estimate.log_w.std() / math.sqrt(20_000)
    assert abs(estimate.bound + gaussian_kl(flow)) < 5 * se
    torch.testing.assert_close(estimate.bound, estimate.log_w.mean())
    assert not estimate.bound.requires_grad
    assert not estimate.log_w.requires_grad


@pytest.mark.parametrize("formula", ["affine", "tril", "iaf*2", "planar*4", "radial*2"])
def test_path_gradient_vanishes_where_q_is_p(formula):
    # Not only on average: for every draw. The total gradient does not.
    flow = perturbed(make_flow(formula, DIM), 0.2)
    frozen = FlowDensity(perturbed(make_flow(formula, DIM)))
    frozen.flow.load_state_dict(flow.state_dict())
    eps = torch.randn(8, DIM, dtype=torch.float64)
    path = gradient(PathELBO(), flow, eps, frozen.log_prob)
    total = gradient(TotalELBO(), flow, eps, frozen.log_prob)
    assert path.abs().max() < 1e-7
    assert total.abs().max() > 1e-3


@pytest.mark.slow
def test_both_gradients_agree_on_average_for_a_nonlinear_flow():
    # Paired z-test over 500 pairs; false alarms below 120 * 6e-7 = 1e-4.
    flow = perturbed(Chain(make_flow("iaf*2", DIM, hidden_dim=4), DiagonalAffine(DIM)))

    def target(z):
        return standard_normal(z) - 0.1 * z.pow(4).sum(-1)

    pairs = [torch.randn(4, DIM, dtype=torch.float64) for _ in range(500)]
    difference = torch.stack(
        [
            gradient(PathELBO(), flow, eps, target) - gradient(TotalELBO(), flow, eps, target)
            for eps in pairs
        ]
    )
    z = difference.mean(0) / (difference.std(0) / math.sqrt(len(pairs)) + 1e-12)
    assert (z.abs() < 5).all()


@both
def test_gradient_of_the_models_own_parameters(objective):
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def target(z):
        return standard_normal(z - shift)

    flow = perturbed(DiagonalAffine(DIM))
    eps = torch.randn(6, DIM, dtype=torch.float64)
    estimate = objective(FlowDensity(flow), target, eps, [shift])
    (found,) = torch.autograd.grad(estimate.surrogate, shift)
    z, log_q = FlowDensity(flow).push(eps)
    (exact,) = torch.autograd.grad(-(target(z) - log_q).mean(), shift)
    torch.testing.assert_close(found, exact)


@both
def test_bad_particles_are_left_out_and_counted(objective):
    flow = perturbed(DiagonalAffine(DIM))
    eps = torch.randn(8, DIM, dtype=torch.float64)

    def target(z):
        bad = torch.zeros(len(z), dtype=torch.bool)
        bad[[1, 4]] = True
        return torch.where(bad, torch.full_like(z[:, 0], torch.nan), standard_normal(z))

    good = [0, 2, 3, 5, 6, 7]
    estimate = objective(FlowDensity(flow), target, eps)
    assert int(estimate.num_bad) == 2
    assert torch.isnan(estimate.log_w[[1, 4]]).all()
    torch.testing.assert_close(estimate.bound, estimate.log_w[good].mean())
    torch.testing.assert_close(
        gradient(objective, flow, eps, target), gradient(objective, flow, eps[good])
    )


@both
def test_a_nan_gradient_alone_is_bad_too(objective):
    flow = perturbed(DiagonalAffine(DIM))
    eps = torch.randn(4, DIM, dtype=torch.float64)

    def target(z):
        # Finite value, and a gradient without a limit: infinity less infinity.
        trap = torch.zeros_like(z[:, 0])
        trap[0] = 1.0
        return standard_normal(z) + trap * (z[:, 0] - z[:, 0]).sqrt()

    estimate = objective(FlowDensity(flow), target, eps)
    assert int(estimate.num_bad) >= 1
    assert torch.isfinite(estimate.surrogate)


@both
def test_all_particles_bad_gives_a_nan_bound(objective):
    flow = perturbed(DiagonalAffine(DIM))
    eps = torch.randn(4, DIM, dtype=torch.float64)
    estimate = objective(FlowDensity(flow), lambda z: z.sum(-1) * torch.nan, eps)
    assert int(estimate.num_bad) == 4
    assert torch.isnan(estimate.bound)


def test_names():
    assert isinstance(make_objective("path"), PathELBO)
    assert isinstance(make_objective("total"), TotalELBO)
    with pytest.raises(OptionError, match="'path', .* an Objective or a function; got 'elbo'"):
        make_objective("elbo")

    class Mine(Objective):
        name = "mine"

        def estimate(self, density, log_density, eps, params=()):
            z, log_q = density.push(eps)
            log_w = log_density(z) - log_q
            return Estimate(-log_w.mean(), log_w.mean().detach(), log_w.detach())

    for mine in (make_objective(Mine()), make_objective(Mine().estimate)):
        density, eps = FlowDensity(DiagonalAffine(2)), torch.ones(3, 2)
        assert mine(density, lambda z: -z.square().sum(-1), eps).log_w.shape == (3,)
        assert (mine.additive, mine.from_weights, mine.settled, mine.stream(0, 3)) == (
            False, False, 0, {},
        )  # fmt: skip
    assert make_objective(Mine().estimate).name == "estimate"
    with pytest.raises(OptionError, match="a function; got"):
        make_objective(Mine)


def test_an_objective_with_a_schedule_reads_its_weight():
    class Warm(Objective):
        name, group, schedule = "warm", 1, Linear(steps=4)

        def estimate(self, density, log_density, eps, params=()):
            z, log_q = density.push(eps)
            log_w = self.weight * log_density(z) - log_q
            return Estimate(-log_w.mean(), log_w.mean().detach(), log_w.detach())

    warm = make_objective(Warm())
    assert (warm.settled, warm.weight) == (4, 1.0)
    numbers = {name: values[1] for name, values in warm.stream(0, 2).items()}
    now = warm.at(numbers)
    assert (float(now.weight), warm.weight) == (0.25, 1.0)


def test_terms_of_several_particles_need_a_multiple():
    class Pairs(Objective):
        name, group = "pairs", 2

        def estimate(self, density, log_density, eps, params=()):
            raise NotImplementedError

    Pairs().check(4)
    with pytest.raises(OptionError, match="takes particles by 2: num_particles is"):
        Pairs().check(5)
