"""Densities that no posterior can have are refused, with the latent that runs away."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, eight_schools

from pyro_nfvi import NFVI
from pyro_nfvi.errors import DivergedError, ModelWarning
from pyro_nfvi.infer._checks.improper import find_improper_direction
from pyro_nfvi.infer._findings import Improper, find

ANYWHERE = dist.ImproperUniform(dist.constraints.real, (), ())


def quick(model, **options):
    options = {"max_steps": 150, "explore": "off"} | options
    return NFVI(model, "affine", seed=0, progress=False, **options).run()


def observed(loc, scale=1.0):
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=Y)


def quartic():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("wrong_sign", x**4)


def grows():
    x = pyro.sample("x", ANYWHERE)
    pyro.factor("push", x)
    observed(pyro.sample("a", dist.Normal(0.0, 1.0)))


def flat():
    pyro.sample("nowhere", ANYWHERE)
    observed(pyro.sample("a", dist.Normal(0.0, 1.0)))


def ridge():
    observed(pyro.sample("a", ANYWHERE) + pyro.sample("b", ANYWHERE))


def flat_scale():
    """Flat on the scale, and no data about it: it grows until numbers end."""
    pyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), ()))
    observed(pyro.sample("a", dist.Normal(0.0, 1.0)))


def separated():
    """Logistic regression whose data are separated, with a flat slope."""
    x = torch.linspace(-1, 1, 10)
    slope = pyro.sample("slope", ANYWHERE)
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=(x > 0).to(x))


@pytest.mark.parametrize("model", [quartic, grows, flat_scale])
@pytest.mark.parametrize("steps", [150, pytest.param(600, marks=pytest.mark.slow)])
def test_a_density_that_grows_has_no_posterior(model, steps):
    with pytest.raises(DivergedError, match="grows without limit") as caught:
        quick(model, max_steps=steps)
    name = {"quartic": "x", "grows": "x", "flat_scale": "s"}[model.__name__]
    assert f"'{name}' runs away" in str(caught.value)
    assert f"'{name}' runs away" in caught.value.fit.report  # nothing is lost
    assert find(caught.value.fit.training.findings, Improper) == Improper((name,))


@pytest.mark.parametrize(
    ("model", "names"), [(flat, ["nowhere"]), (ridge, ["a", "b"]), (separated, ["slope"])]
)
def test_a_flat_direction_is_told(model, names):
    with pytest.warns(ModelWarning, match="does not fall"):
        fit = quick(model, max_steps=100)
    assert sorted(find(fit.training.findings, Improper).names) == names
    assert all(repr(name) in fit.report for name in names)
    assert "proper prior" in fit.report


def heavy_tails():
    pyro.sample("cauchy", dist.Cauchy(0.0, 1.0))
    pyro.sample("half", dist.HalfCauchy(1.0))
    pyro.sample("inverse", dist.InverseGamma(0.5, 0.5))
    pyro.sample("pareto", dist.Pareto(1.0, 1.0))
    pyro.sample("edge", dist.Beta(0.5, 0.5))
    pyro.sample("simplex", dist.Dirichlet(torch.full((3,), 0.5)))
    pyro.sample("lkj", dist.LKJCholesky(3, 1.0))
    observed(pyro.sample("t", dist.StudentT(1.0, 0.0, 1.0)))


def wide():
    """Proper and nearly flat: sd of the priors a million, and data about the sum only."""
    observed(pyro.sample("a", dist.Normal(0.0, 1e6)) + pyro.sample("b", dist.Normal(0.0, 1e3)))


def flat_and_enough_data():
    loc = pyro.sample("loc", ANYWHERE)
    scale = pyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.factor("one_over_scale", -scale.log())
    observed(loc, scale)


def cancelled():
    """The prior is taken away again by a factor, which puts another one in its place."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("other", dist.Cauchy(0.0, 1.0).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x))
    observed(pyro.sample("a", dist.Normal(0.0, 1.0)))


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), torch.exp(v / 2).unsqueeze(-1)).to_event(1))
    observed(v)


def scaled_covariates():
    """A draw of the start is a million times worse than the fit, and a slope mends some of it."""
    t = torch.linspace(0.0, 1.0, len(Y))
    x = torch.stack([torch.ones(len(Y)), t, t.square()], -1) * torch.tensor([1e4, 1e-3, 1.0])
    observed(pyro.sample("b", dist.Normal(0.0, 1e3).expand([3]).to_event(1)) @ x.T)


@pytest.mark.parametrize(
    "model",
    [
        scaled_covariates,
        heavy_tails,
        wide,
        flat_and_enough_data,
        cancelled,
        funnel,
        pytest.param(eight_schools, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_false_alarm(model, double):
    """Heavy tails, wide priors and funnels are proper."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = quick(model, max_steps=100)
    finally:
        torch.set_default_dtype(default)
    assert find(fit.training.findings, Improper) is None
    assert find_improper_direction(fit.latent, fit.log_joint, fit.draws.z, {}, 0) is None
