"""Likelihoods: normalised, equal to Pyro's distributions, and strict about their images."""

from __future__ import annotations

import math

import pytest
import torch
from vae.cases import SHAPE, make

from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae import Bernoulli, Categorical, Gaussian, LogitNormal
from pyro_nfvi.vae._likelihoods import make_likelihood

ALL = [Bernoulli(), Categorical(5), Gaussian(), Gaussian(0.3), LogitNormal(), LogitNormal(0.8)]


def data(likelihood, count=4):
    if isinstance(likelihood, Bernoulli):
        return torch.bernoulli(torch.full((count, *SHAPE), 0.5))
    if isinstance(likelihood, Categorical):
        return torch.randint(likelihood.levels, (count, *SHAPE))
    return torch.rand(count, *SHAPE).clamp(0.01, 0.99)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_log_prob_is_that_of_the_distribution(likelihood):
    x = data(likelihood)
    last = () if likelihood.num_params == 1 else (likelihood.num_params,)
    params = torch.randn(7, 4, *SHAPE, *last)
    theirs = likelihood.distribution(params).log_prob(x).sum((-1, -2))
    ours = likelihood.log_prob(params, x)
    assert ours.shape == (7, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(likelihood.log_prob(params[0], x), ours[0])
    assert likelihood.mean(params).shape == likelihood.sample(params).shape == (7, 4, *SHAPE)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_a_vae_takes_every_likelihood_by_both_doors(likelihood):
    vae = make("planar*2", likelihood=likelihood)
    x = data(likelihood)
    assert vae.elbo(x, num_samples=3).bound.shape == (4,)
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x))


def test_probabilities_sum_to_one():
    params = torch.randn(1, 1, 3)
    total = sum(
        Categorical(3).log_prob(params, torch.full((1, 1), k)).exp().item() for k in range(3)
    )
    assert total == pytest.approx(1, abs=1e-6)
    logit = torch.randn(1, 1)
    total = sum(Bernoulli().log_prob(logit, torch.full((1, 1), k)).exp() for k in (0.0, 1.0))
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_logit_normal_integrates_to_one():
    x = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64).unsqueeze(-1)
    params = torch.tensor([[[0.3, -0.2]]], dtype=torch.float64).expand(len(x), 1, 2)
    density = LogitNormal().log_prob(params, x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "x", "hint"),
    [
        (Categorical(4), torch.full((1, 2), 4), "0 to 3"),
        (Categorical(4), torch.full((1, 2), -1), "0 to 3"),
        (Categorical(4), torch.full((1, 2), 0.5), "integers"),
        (Categorical(4), torch.full((1, 2), torch.nan), "integers"),
        (Gaussian(), torch.zeros(1, 2, dtype=torch.uint8), "Dequantise"),
        (Gaussian(), torch.full((1, 2), torch.inf), "not finite"),
        (LogitNormal(), torch.zeros(1, 2), "strictly between"),
        (LogitNormal(), torch.full((1, 2), 128.0), "strictly between"),
    ],
)
def test_images_that_do_not_fit_are_refused(likelihood, x, hint):
    with pytest.raises(DataError, match=hint):
        likelihood.check(x)


def test_names_and_options():
    assert make_likelihood("logit-normal", scale=0.5) == LogitNormal(0.5)
    assert make_likelihood(Gaussian(2.0)) == Gaussian(2.0)
    for likelihood in ALL:
        spec = dict(likelihood.spec())
        assert make_likelihood(spec.pop("name"), **spec) == likelihood
    for bad in ("normal", "bernouli"):
        with pytest.raises(OptionError, match="bernoulli"):
            make_likelihood(bad)
    with pytest.raises(OptionError):
        make_likelihood("bernoulli", levels=3)
    with pytest.raises(OptionError):
        Categorical(1)
    with pytest.raises(OptionError):
        Gaussian(scale=-1.0)
