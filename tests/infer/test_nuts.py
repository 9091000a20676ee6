"""NUTS through a fitted flow: the exact posterior, and what it says of the fit."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, posterior

from pyro_nfvi import NFVI, load, to_arviz
from pyro_nfvi.errors import ModelError, NotSetUpError, OptionError


def fitted(model, *args, **options):
    chosen = {"max_steps": 150, "seed": 0, "progress": False, "explore": "off"} | options
    return NFVI(model, "affine", **chosen).run(*args)


@pytest.fixture(scope="module")
def run():
    fit = fitted(conjugate, Y)
    return fit, fit.to_nuts(num_samples=200, warmup_steps=100, seed=0, progress=False)


def test_draws_are_those_of_the_posterior(run):
    _, nuts = run
    mean, sd = posterior(Y)
    draws = nuts.get_samples()["mu"]
    assert draws.shape == (400,)
    assert nuts.get_samples(group_by_chain=True, deterministic=True)["twice"].shape == (2, 200)
    torch.testing.assert_close(nuts.get_samples(deterministic=True)["twice"], 2 * draws)
    # At an effective size of 100 or more: 5 standard errors of mean and sd (rate below 1e-5).
    assert nuts.ess > 100
    assert abs(draws.mean() - mean) < 5 * sd / 10
    assert abs(draws.std() / sd - 1) < 5 / 200**0.5
    assert nuts.rhat < 1.05
    assert nuts.khat < 0.7
    assert "2 chains of 200 draws" in repr(nuts)
    assert abs(nuts.summary()["mu"].mean - float(draws.mean())) < 1e-4


def test_log_p_and_arviz(run):
    pytest.importorskip("arviz")
    fit, nuts = run
    idata = to_arviz(nuts)
    assert idata["posterior"]["mu"].shape == (2, 200)
    assert idata["log_likelihood"]["y"].shape == (2, 200, len(Y))
    found = torch.as_tensor(idata["sample_stats"]["log_p"].values)
    torch.testing.assert_close(found, nuts.log_p, atol=1e-3, rtol=1e-4)
    both = to_arviz([fit, {"mu": nuts.get_samples()["mu"]}], num_samples=400)
    assert both["posterior"]["mu"].shape == (2, 400)


def test_same_seed_same_draws_and_nothing_of_the_process_changes():
    fit = fitted(conjugate, Y, max_steps=20)
    before = torch.get_rng_state()
    one, two = (
        fit.to_nuts(num_samples=10, warmup_steps=10, num_chains=1, seed=3, progress=False)
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.get_samples()["mu"], two.get_samples()["mu"])
    assert all(p.requires_grad for p in fit.guide.parameters())
    assert len(pyro.poutine.runtime._PYRO_STACK) == 0


def test_a_guide_that_is_too_narrow_is_seen_from_the_posterior():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wider", -dist.Normal(0.0, 1.0).log_prob(x) + dist.Cauchy(0.0, 1.0).log_prob(x))

    nuts = fitted(model).to_nuts(num_samples=150, warmup_steps=80, seed=0, progress=False)
    assert nuts.khat > 0.7


def test_bad_requests(tmp_path):
    fit = fitted(conjugate, Y, max_steps=5)
    with pytest.raises(OptionError, match="num_samples"):
        fit.to_nuts(num_samples=0)
    fit.save(tmp_path / "fit")
    with pytest.raises(NotSetUpError, match="without its model"):
        load(tmp_path / "fit").to_nuts()

    def subsampled():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[index])

    with pytest.raises(ModelError, match="'data' subsamples"):
        fitted(subsampled, max_steps=5).to_nuts()
