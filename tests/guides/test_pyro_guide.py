"""The density of a guide of Pyro's is the one that Pyro traces."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide

from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.guides._site_noise import draw, noise_shape


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(theta.mean(-1, keepdim=True), 1.0), obs=y)


def by_hand(y):
    mu = pyro.sample("mu", dist.Normal(0.3, 0.5))
    tau = pyro.sample("tau", dist.LogNormal(0.2 * mu, 0.4))
    with pyro.plate("groups", 3):
        pyro.sample("theta", dist.Normal(mu, tau))
    pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))


def one_by_one(y):
    """Code that no plate can go through."""
    mu = pyro.sample("mu", dist.Normal(0.3, 0.5))
    pyro.sample("tau", dist.LogNormal(0.2 * mu.item(), 0.4))
    with pyro.plate("groups", 3):
        pyro.sample("theta", dist.Normal(mu, 1.0))
    pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))


GUIDES = {
    "mean field": lambda: autoguide.AutoNormal(model),
    "diagonal": lambda: autoguide.AutoDiagonalNormal(model),
    "full": lambda: autoguide.AutoMultivariateNormal(model),
    "low rank": lambda: autoguide.AutoLowRankMultivariateNormal(model, rank=2),
    "iaf": lambda: autoguide.AutoIAFNormal(model, hidden_dim=[8]),
    "by hand": lambda: by_hand,
    "one by one": lambda: one_by_one,
}
Y = torch.linspace(-1, 1, 5)


@pytest.mark.parametrize("name", GUIDES)
def test_points_have_the_density_of_pyros_trace(name):
    pyro.clear_param_store()
    with poutine.block(), torch.random.fork_rng():
        own = GUIDES[name]()
        guide = PyroGuide(model, own).setup(Y)
        trace = poutine.trace(own).get_trace(Y)
    values = {site: trace.nodes[site]["value"].detach() for site in guide.latent.sites}
    found = guide.log_prob(values)
    assert found.item() == pytest.approx(trace.log_prob_sum().item(), abs=2e-3)
    pyro.clear_param_store()


@pytest.mark.parametrize("name", GUIDES)
def test_draws_know_their_density(name):
    with torch.random.fork_rng():
        guide = PyroGuide(model, GUIDES[name]()).setup(Y)
        density = guide.density()
        z, log_q = density.rsample_and_log_prob(7)
        pushed, again, score = density.push_with_score(density.sample_base(7))
    assert z.shape == (7, guide.latent.dim)
    assert torch.allclose(density.log_prob(z.detach()), log_q, atol=2e-3)
    assert score.shape == pushed.shape
    assert not score.requires_grad
    alone = guide._parts[0]
    assert getattr(alone, "vectorised", True) == (name != "one by one")


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.tensor([1.0, 2.0]), 3.0),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.LogNormal(torch.zeros(3), 0.5),
        dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.6], [0.6, 1.0]])),
        dist.LowRankMultivariateNormal(torch.ones(3), torch.ones(3, 1), torch.ones(3)),
        dist.Uniform(torch.tensor(-1.0), 2.0),
        dist.Exponential(torch.tensor(2.0)),
        dist.Laplace(torch.tensor(1.0), 2.0),
        dist.Gamma(torch.tensor(2.0), 1.0),
        dist.Dirichlet(torch.tensor([1.0, 2.0])),
        dist.Normal(0.0, 1.0).expand([2]).mask(torch.tensor([True, False])),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_noise_gives_the_distribution(fn):
    many = fn.expand((4000, *fn.batch_shape))
    noise = torch.randn(noise_shape(many), generator=torch.Generator().manual_seed(1))
    x = draw(many, noise)
    assert x.shape == many.shape()
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(2)
        other = many.sample()
    sd = other.std(0)
    # Two means of 4000 draws differ by 0.11 sd once in 10^6, sds by more where tails are long.
    assert ((x.mean(0) - other.mean(0)) / sd).abs().max() < 0.12
    assert (x.std(0) / sd - 1).abs().max() < 0.15
