"""Models of ``pyro.contrib.gp``: the density of each beside its closed form, and those refused."""

from __future__ import annotations

import warnings

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample

from pyro_nfvi import NFVI
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import ModelError, ModelWarning

JITTER = 1e-6
X = torch.linspace(0.0, 5.0, 20, dtype=torch.float64)
XU = torch.linspace(0.3, 4.7, 5, dtype=torch.float64)
Y = torch.sin(X) + 0.2 * torch.cos(37 * X)
PRIOR = dist.LogNormal(torch.zeros((), dtype=torch.float64), 1.0)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def kernel(*, priors=True):
    found = gp.kernels.RBF(1)
    if priors:
        found.variance, found.lengthscale = PyroSample(PRIOR), PyroSample(PRIOR)
    return found


def sparse(approx):
    found = gp.models.SparseGPRegression(
        X, Y, kernel(), Xu=XU.clone(), noise=torch.tensor(0.1), approx=approx, jitter=JITTER
    )
    found.noise = PyroSample(PRIOR)
    del found.Xu  # held where they are, instead of trained
    found.Xu = XU
    return found.model


def log_likelihood(approx, variance, lengthscale, noise):
    """Log density of the data by the formulas of Quiñonero-Candela and Rasmussen (2005)."""
    variance, lengthscale, noise = (x[..., None, None] for x in (variance, lengthscale, noise))

    def k(a, b):
        return variance * torch.exp(-0.5 * (a[:, None] - b) ** 2 / lengthscale**2)

    kuu = k(XU, XU) + JITTER * torch.eye(len(XU))
    q = k(X, XU) @ torch.linalg.inv(kuu) @ k(XU, X)
    left = variance * torch.eye(len(X)) - q * torch.eye(len(X))
    if approx == "FITC":  # the prior variances are exact
        q = q + left
    cov = q + noise * torch.eye(len(X))
    found = dist.MultivariateNormal(torch.zeros(len(X)), cov).log_prob(Y)
    if approx == "VFE":  # Titsias (2009), equation 9
        found = found - left.sum((-2, -1)) / (2 * noise[..., 0, 0])
    return found


def closed(approx):
    def model():
        v = pyro.sample("kernel.variance", PRIOR)
        scale = pyro.sample("kernel.lengthscale", PRIOR)
        noise = pyro.sample("noise", PRIOR)
        pyro.factor("y", log_likelihood(approx, v, scale, noise))

    return model


@pytest.mark.parametrize("approx", ["FITC", "DTC", "VFE"])
def test_sparse_regression_has_the_density_of_its_closed_form(approx):
    model = sparse(approx)
    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    log_joint = LogJoint(model, (), {}, latent)
    z = log_joint.points(8)
    values = latent.constrain(z)[0]
    names = ("kernel.variance", "kernel.lengthscale", "noise")
    expected = log_likelihood(approx, *(values[name] for name in names))
    for value in values.values():
        expected = expected + PRIOR.log_prob(value) + value.log()  # and the map's Jacobian
    torch.testing.assert_close(log_joint(z), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("approx", ["FITC", "DTC"])
def test_sparse_regression_has_the_posterior_of_its_closed_form(approx):
    # Weighted means of 4000 draws, of which both fits are good: 0.03 sds of error each.
    fit = NFVI(sparse(approx), seed=0, progress=False).run()
    other = NFVI(closed(approx), seed=1, progress=False).run()
    assert fit.verdict == other.verdict == "good"
    assert abs(float(fit.log_evidence()[0] - other.log_evidence()[0])) < 0.05
    draws, reference = fit.resample(4000, seed=0), other.resample(4000, seed=0)
    for name, value in draws.items():
        one, two = value.log(), reference[name].log()
        assert abs(float(one.mean() - two.mean())) < 0.15 * float(two.std())
        assert float(one.std()) == pytest.approx(float(two.std()), rel=0.15)


def variational(which, *, whiten=False, priors=False, binary=False):
    likelihood = gp.likelihoods.Binary() if binary else gp.likelihoods.Gaussian()
    y = (Y > 0).double() if binary else Y
    if which == "full":
        return gp.models.VariationalGP(X, y, kernel(priors=priors), likelihood, whiten=whiten)
    return gp.models.VariationalSparseGP(
        X, y, kernel(priors=priors), XU.clone(), likelihood, whiten=whiten
    )


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("priors", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("which", ["full", "sparse"])
def test_a_model_of_the_moments_of_its_guide_is_refused(which, whiten, priors, binary):
    # Its likelihood reads f_loc and f_scale_tril; a fit of it was "good", with a noise of 1e-15.
    module = variational(which, whiten=whiten, priors=priors, binary=binary)
    name = {"full": "f", "sparse": "u"}[which]
    for model in (module.model, lambda: module.model()):
        with pytest.raises(ModelError, match=rf"depends on its latent site '{name}'.*{name}_loc"):
            NFVI(model, progress=False).run()


@pytest.mark.slow
def test_a_latent_process_has_the_posterior_of_its_closed_form():
    # What the refusal advises: Gaussian, so that the posterior of f is known.
    cov = torch.exp(-0.5 * (X[:, None] - X) ** 2) + 1e-4 * torch.eye(len(X))

    def model():
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(X)), cov))
        pyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=Y)

    fit = NFVI(model, seed=0, progress=False, max_steps=300).run()
    expected = cov @ torch.linalg.solve(cov + 0.09 * torch.eye(len(X)), Y)
    evidence = dist.MultivariateNormal(torch.zeros(len(X)), cov + 0.09 * torch.eye(len(X)))
    assert fit.verdict == "good"
    assert float(fit.log_evidence()[0]) == pytest.approx(float(evidence.log_prob(Y)), abs=0.02)
    # Standard errors of 4000 draws are below 0.005.
    assert float((fit.sample(4000)["f"].mean(0) - expected).abs().max()) < 0.03


@pytest.mark.slow
def test_a_latent_variable_model_is_fitted():
    module = gp.models.GPRegression(
        0.1 * torch.randn(6, 1, generator=torch.Generator().manual_seed(0)),
        torch.stack([Y[:6], Y[6:12]]),
        gp.kernels.RBF(1),
        noise=torch.tensor(0.1),
    )
    for one in (module.kernel, module):
        one.requires_grad_(False)
    lvm = gp.models.GPLVM(module)
    fit = NFVI(lvm.model, seed=0, progress=False, max_seconds=120.0).run()
    assert fit.sample(10)["X"].shape == (10, 6, 1)


# Data that look at no latent: the posterior is the prior, which is said.


def forgotten():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))


def trained():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    a = pyro.param("a", torch.tensor(0.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(0.5))


def distant():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal((x > 4.0).to(x), 1.0), obs=torch.tensor(0.0))


def meant():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("no_data", torch.zeros(()))


@pytest.mark.parametrize("model", [forgotten, trained, distant, meant])
def test_data_that_look_at_no_latent_are_told(model):
    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LogJoint(model, (), {}, latent)
    told = [str(one.message) for one in caught if issubclass(one.category, ModelWarning)]
    assert len(told) == (model in (forgotten, trained))
    assert all("'y'" in text and "'x'" in text for text in told)
