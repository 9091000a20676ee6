"""Fits through to_arviz: alone, as chains, loaded without their model."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi.errors import OptionError

pytest.importorskip("arviz")

Y = torch.tensor([1.0, 2.0, 4.0])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact():
    variance = 1 / (3 + 1 / 9)
    return variance * float(Y.sum()), variance**0.5


def quick(seed):
    fitter = nfvi.NFVI(model, guide="affine", seed=seed, progress=False, max_steps=40, stop=False)
    return fitter.run(Y)


@pytest.fixture(scope="module")
def fits():
    return [quick(0), quick(1)]


def test_a_fit_brings_its_model_and_data(fits):
    idata = nfvi.to_arviz(fits[0], num_samples=4000)
    mean, sd = exact()
    # 4,000 draws: 5 standard errors of mean and sd are 0.045 and 6 %; the rest is the fit's.
    assert idata["posterior"]["mu"].values.mean() == pytest.approx(mean, abs=0.08)
    assert idata["posterior"]["mu"].values.std() == pytest.approx(sd, rel=0.1)
    stats = idata["sample_stats"]
    gap = (stats["log_p"] - stats["log_q"]).values
    covariance = torch.eye(3) + 9 * torch.ones(3, 3)
    evidence = float(dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(Y))
    # q is nearly p, so each weight is nearly the evidence.
    assert np.median(gap) == pytest.approx(evidence, abs=0.05)
    assert stats.attrs["log_evidence"] == pytest.approx(evidence, abs=0.02)
    values = {"mu": torch.tensor(idata["posterior"]["mu"].values[0])}
    np.testing.assert_allclose(stats["log_q"].values[0], fits[0].log_prob(values), atol=1e-4)
    assert idata["posterior"].attrs["source"].startswith("NFVI")


def test_seeds_are_chains(fits):
    import arviz as az

    idata = nfvi.to_arviz(fits, num_samples=1000)
    assert idata["posterior"]["mu"].shape == (2, 1000)
    assert idata["sample_stats"].attrs["khat"].shape == (2,)
    # Two fits of one Gaussian posterior agree. R-hat of 2 x 1,000 independent draws of two
    # distributions that differ by 0.1 sd stays below 1.02.
    assert float(az.rhat(idata["posterior"])["mu"]) < 1.03


def test_reweighted_as_chains(fits):
    idata = nfvi.to_arviz(fits, num_samples=200, reweighted=True)
    assert idata["posterior"]["mu"].shape == (2, 200)
    assert idata["sample_stats"]["log_p"].shape == (2, 200)


def test_loaded_without_its_model(fits, tmp_path):
    fits[0].save(tmp_path / "fit.pt")
    loaded = nfvi.load(tmp_path / "fit.pt")
    alone = nfvi.to_arviz(loaded, num_samples=50)
    assert alone["posterior"]["mu"].shape == (1, 50)
    assert "no model" in alone["posterior"].attrs["missing_log_likelihood"]
    assert "log_q" in alone["sample_stats"]
    with pytest.raises(OptionError, match="needs the model"):
        nfvi.to_arviz(loaded, num_samples=50, reweighted=True)
    given = nfvi.to_arviz(loaded, model=model, args=(Y,), num_samples=50)
    assert given["log_likelihood"]["y"].shape == (1, 50, 3)


def test_other_data_may_be_scored(fits):
    """Log likelihood of new observations at the draws of the fit."""
    new = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    idata = nfvi.to_arviz(fits[0], args=(new,), num_samples=20)
    mu = torch.tensor(idata["posterior"]["mu"].values[0])[:, None]
    found = idata["log_likelihood"]["y"].values[0]
    np.testing.assert_allclose(found, dist.Normal(mu, 1.0).log_prob(new).numpy(), atol=1e-5)


@pytest.mark.slow
def test_each_chain_is_evaluated_with_the_parameters_that_its_fit_trained():
    def scaled(y):
        scale = pyro.param("scale", torch.tensor(3.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.deterministic("wide", mu * scale)
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fits = [
        nfvi.NFVI(
            scaled,
            "affine",
            seed=0,
            progress=False,
            max_steps=steps,
            stop=False,
            precondition=False,
            explore="off",
        ).run(Y)
        for steps in (5, 100)
    ]
    scales = [float(fit.params["scale"]) for fit in fits]
    assert abs(scales[0] - scales[1]) > 0.1
    idata = nfvi.to_arviz(fits, num_samples=20)
    assert "scale" not in pyro.get_param_store()
    for chain, scale in enumerate(scales):
        mu = torch.tensor(idata["posterior"]["mu"].values[chain])
        expected = dist.Normal(mu[:, None], scale).log_prob(Y).numpy()
        found = idata["log_likelihood"]["y"].values[chain]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        total = dist.Normal(0.0, 1.0).log_prob(mu).numpy() + expected.sum(1)
        np.testing.assert_allclose(idata["sample_stats"]["log_p"].values[chain], total, atol=1e-3)
        wide = idata["posterior"]["wide"].values[chain]
        np.testing.assert_allclose(wide, mu * scale, rtol=1e-5)
    assert idata["sample_stats"].attrs["khat"].shape == (2,)
    assert idata["prior"].sizes["chain"] == 1


def test_a_fit_and_mcmc_draws_as_chains(fits):
    """What one of them lacks is left out; what both have stands side by side."""
    torch.manual_seed(0)
    idata = nfvi.to_arviz([fits[0], {"mu": torch.randn(50)}], num_samples=50)
    assert idata["posterior"]["mu"].shape == (2, 50)
    assert idata["log_likelihood"]["y"].shape == (2, 50, 3)
    assert list(idata["sample_stats"].data_vars) == ["log_p"]
    assert "khat" not in idata["posterior"].attrs
