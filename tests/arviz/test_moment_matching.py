"""Moment matching against leaving one out in closed form, where plain weights fail."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nfvi import NFVI
from pyro_nfvi.arviz import loo_approximate, loo_moment_match
from pyro_nfvi.errors import ConversionWarning, OptionError

az = pytest.importorskip("arviz")

#: The last one is 9 posterior standard deviations from the others, the third 5.
Y = torch.tensor([0.3, -0.8, 4.0, 0.4, -9.0], dtype=torch.float64)


def model(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(power=1.0):
    """Density of each datum given the others, in closed form."""
    precision = power * (len(Y) - 1) + 1 / 25
    means = power * (Y.sum() - Y) / precision
    return dist.Normal(means, (1 + 1 / precision) ** 0.5).log_prob(Y).numpy()


def quick(model, *args):
    options = {"max_steps": 150, "engine": "eager", "explore": "off", "progress": False}
    return NFVI(model, "affine", seed=0, **options).run(*args)


@pytest.fixture(scope="module")
def fit():
    return quick(model, Y)


def test_outliers_that_plain_weights_get_wrong(fit):
    plain = loo_approximate(fit.to_arviz(num_samples=4000))
    state = torch.get_rng_state()
    matched = loo_moment_match(fit)
    assert torch.equal(state, torch.get_rng_state())
    bad = plain.pareto_k.values > 0.7
    assert bad.any()
    assert np.abs(plain.elpd_i.values - exact())[bad].max() > 0.5
    # Standard errors of the terms are 0.02 with 4000 draws; five of them.
    np.testing.assert_allclose(matched.elpd_i.values, exact(), atol=0.1)
    assert (matched.pareto_k.values < 0.5).all()
    assert matched.pareto_k.dims == ("data",)
    again = loo_moment_match(fit)
    np.testing.assert_array_equal(matched.elpd_i.values, again.elpd_i.values)
    assert len(az.compare({"plain": plain, "matched": matched})) == 2


def test_a_power_likelihood():
    def scaled(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 5.0))
        with pyro.plate("data", len(y)), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = loo_moment_match(quick(scaled, Y))
    np.testing.assert_allclose(found.elpd_i.values, exact(0.5), atol=0.1)


def regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(2, dtype=y.dtype), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


def exact_regression(x, y):
    terms = []
    for i in range(len(y)):
        rest = torch.arange(len(y)) != i
        precision = x[rest].T @ x[rest] + torch.eye(2, dtype=x.dtype) / 25
        mean = torch.linalg.solve(precision, x[rest].T @ y[rest])
        spread = 1 + x[i] @ torch.linalg.solve(precision, x[i])
        terms.append(float(dist.Normal(x[i] @ mean, spread.sqrt()).log_prob(y[i])))
    return terms


def test_scales_and_covariances_are_matched():
    """Without the third datum the posterior is twice as wide along one direction."""
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    y = torch.tensor([0.5, -0.5, 7.0], dtype=torch.float64)
    fit = quick(regression, x, y)
    plain = loo_approximate(fit.to_arviz(num_samples=4000)).elpd_i.values
    found, terms = loo_moment_match(fit).elpd_i.values, exact_regression(x, y)
    print(plain, terms, found)
    assert abs(plain[2] - terms[2]) > 0.3
    np.testing.assert_allclose(found, terms, atol=0.1)


def test_a_posterior_that_is_out_of_reach_is_told_of():
    """Without the third datum the posterior is forty times as wide along one direction."""
    x = torch.tensor([[1.0, 1.0], [1.0, 1.1], [1.0, 9.0]], dtype=torch.float64)
    y = torch.tensor([0.5, -0.5, 30.0], dtype=torch.float64)
    with pytest.warns(ConversionWarning, match="1 of 3 observations keep a k-hat above 0.5"):
        loo_moment_match(quick(regression, x, y))


def test_what_cannot_be_matched_is_said(fit):
    with pytest.raises(OptionError, match="a fit of one vector; got AutoFlow"):
        loo_moment_match(fit.guide)
    with pytest.raises(OptionError, match="'z'; there are y"):
        loo_moment_match(fit, var_name="z")
    with pytest.raises(OptionError, match="Did you mean num_samples"):
        loo_moment_match(fit, num_sample=100)
    with pytest.warns(ConversionWarning, match="keep a k-hat above"):
        loo_moment_match(fit, num_samples=30)
