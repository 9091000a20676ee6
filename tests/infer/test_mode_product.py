"""Fits whose modes are those of independent blocks, in all combinations; and of many modes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, Target, load
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._findings import IndependentModes, ModesUnseen, find

SCALE = 0.1


def groups(count):
    """Values of which the sign was lost, a little noisy."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, generator=generator).abs() + 0.3


def signs(y):
    """Each latent is known up to its sign; the prior prefers the positive one."""
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(0.3, 1.0))
        pyro.sample("y", dist.Normal(z.abs(), SCALE), obs=y)


def exact(y):
    """Log evidence, and the probability that each latent is positive, on a grid."""
    grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    evidence, right = 0.0, []
    for one in y.double():
        log_p = dist.Normal(0.3, 1.0).log_prob(grid)
        log_p = log_p + dist.Normal(grid.abs(), SCALE).log_prob(one)
        evidence += float(torch.logsumexp(log_p, 0)) + math.log(16 / 200_000)
        right.append(float(log_p.softmax(0)[grid > 0].sum()))
    return evidence, torch.tensor(right, dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted():
    return NFVI(signs, seed=0, progress=False).run(groups(6))


def test_all_combinations_of_modes_are_held(fitted):
    evidence, right = exact(groups(6))
    assert fitted.verdict == "good"
    found = find(fitted.training.findings, IndependentModes)
    assert (found.blocks, found.several) == (6, 6)
    assert found.log_modes == pytest.approx(6 * math.log(2))
    assert "all 64 of their combinations" in " ".join(fitted.verdict.reasons)
    assert find(fitted.training.findings, ModesUnseen).share == 0
    assert fitted.log_evidence()[0] == pytest.approx(evidence, abs=0.01)
    draws = fitted.sample(20_000, seed=1)["z"]
    # Five standard errors of a share of 20,000 draws: a false alarm in 3e5.
    assert ((draws > 0).double().mean(0) - right).abs().max() < 0.018


def test_a_product_is_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", model=signs, args=(groups(6),))
    assert isinstance(again.guide, AutoFlow)
    assert again.guide.holds_mixture
    assert again.verdict.reasons == fitted.verdict.reasons
    assert torch.equal(again.sample(50, seed=2)["z"], fitted.sample(50, seed=2)["z"])
    alone = load(tmp_path / "fit.pt")
    values = fitted.sample(10, seed=3)
    assert torch.equal(alone.log_prob(values), fitted.log_prob(values))


def test_quantiles_of_a_product_are_those_of_its_draws(fitted):
    draws = fitted.sample(20_000, seed=4)["z"]
    levels = [0.1, 0.5, 0.9]
    expected = draws.quantile(torch.tensor(levels), 0)
    found = fitted.guide.quantiles(levels)["z"]
    # Where a level falls between two modes, either side is right; none does here.
    assert (found - expected).abs().max() < 0.1


def test_chains_through_a_product_go_from_mode_to_mode(fitted):
    run = fitted.mcmc(num_samples=200, warmup_steps=100, seed=0, progress=False)
    z = run.get_samples(group_by_chain=True)["z"]
    crossed = ((z[:, 1:] > 0) != (z[:, :-1] > 0)).double().mean((0, 1))
    assert float(crossed.min()) > 0.1
    _, right = exact(groups(6))
    assert ((z > 0).double().mean((0, 1)) - right).abs().max() < 0.05


def test_many_modes_of_few_latents_are_one_mixture():
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) * 8
    places = places + torch.randn(25, 2, generator=torch.Generator().manual_seed(0))
    logits = torch.linspace(-1.0, 1.0, 25)

    def log_density(z):
        each = -0.5 * (z.unsqueeze(-2) - places).square().sum(-1)
        return torch.logsumexp(each + logits, -1)

    fit = NFVI(Target(log_density, 2), seed=0, progress=False).run()
    assert len(fit.modes) == 25
    assert fit.verdict == "good"
    weights = torch.softmax(logits.double(), 0)
    at = torch.tensor([mode["at"]["z"] for mode in fit.modes]).reshape(25, 2)
    nearest = (at.unsqueeze(1) - places).norm(dim=-1).argmin(-1)
    assert sorted(nearest.tolist()) == list(range(25))
    found = torch.tensor([mode["weight"] for mode in fit.modes], dtype=torch.float64)
    assert (found - weights[nearest]).abs().max() < 0.01


def test_an_interaction_leaves_the_fit_to_other_ways():
    y = groups(4)

    def model():
        with pyro.plate("groups", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z.abs(), SCALE), obs=y)
        pyro.factor("signs", 0.5 * z[..., 1:].mul(z[..., :-1]).sum(-1))

    fit = NFVI(model, seed=0, max_steps=300, progress=False).run()
    assert find(fit.training.findings, IndependentModes) is None


@pytest.mark.slow
def test_a_plate_of_fifty_signs_is_exact():
    y = groups(50)
    evidence, right = exact(y)
    for seed in range(3):
        fit = NFVI(signs, seed=seed, progress=False).run(y)
        assert fit.verdict == "good"
        assert fit.log_evidence()[0] == pytest.approx(evidence, abs=0.05)
        share = (fit.sample(20_000, seed=1)["z"] > 0).double().mean(0)
        assert (share - right).abs().max() < 0.018


@pytest.mark.slow
def test_many_well_in_thirty_two_dimensions():
    def log_density(x):
        wells, rest = x[..., ::2], x[..., 1::2]
        inner = -(wells**4) + 6 * wells**2 + 0.5 * wells
        return inner.sum(-1) - 0.5 * rest.square().sum(-1)

    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    each = -(grid**4) + 6 * grid**2 + 0.5 * grid
    one = float(torch.logsumexp(each, 0)) + math.log(12 / 200_000)
    right = float(each.softmax(0)[grid > 0].sum())
    for seed in range(3):
        fit = NFVI(Target(log_density, 32), seed=seed, progress=False).run()
        assert fit.verdict == "good"
        evidence = 16 * (one + 0.5 * math.log(2 * math.pi))
        assert fit.log_evidence()[0] == pytest.approx(evidence, abs=0.05)
        share = (fit.sample(40_000, seed=1)["z"][:, ::2] > 0).double().mean(0)
        assert (share - right).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_gaussians_in_the_plane(seed):
    generator = torch.Generator().manual_seed(seed)
    places = 80 * torch.rand(40, 2, generator=generator) - 40
    scale = math.log1p(math.e)

    def log_density(z):
        each = -0.5 * ((z.unsqueeze(-2) - places) / scale).square().sum(-1)
        return torch.logsumexp(each, -1)

    fit = NFVI(Target(log_density, 2), seed=seed, progress=False).run()
    assert fit.verdict == "good"
    z = fit.sample(40_000, seed=1)["z"]
    true = places.repeat_interleave(1000, 0)
    true = true + scale * torch.randn(true.shape, generator=generator)

    def shares(points):
        near = (points.unsqueeze(1) - places).square().sum(-1).argmin(-1)
        return torch.bincount(near, minlength=40) / len(points)

    assert (shares(z) > 0).all()
    assert (shares(z) - shares(true)).abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_signs_given_a_latent_mean(seed):
    from benchmarks.modes_targets import signs_given_mean

    target = signs_given_mean(20)
    fit = NFVI(target.model, seed=seed, progress=False).run()
    assert fit.verdict == "good"
    assert find(fit.training.findings, IndependentModes).given == ("mean",)
    assert fit.log_evidence()[0] == pytest.approx(target.log_evidence, abs=0.05)
    shares = target.shares(fit.sample(40_000, seed=1))
    assert (shares - target.true).abs().max() < 0.02
