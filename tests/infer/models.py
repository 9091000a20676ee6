"""Models of the tests: one with a posterior in closed form, and awkward ones."""

import math

import pyro
import pyro.distributions as dist
import torch

PRIOR_SD, NOISE_SD = 5.0, 2.0
Y = torch.tensor([1.0, 3.0, 2.5, 0.5, 4.0])


def conjugate(y):
    """mu ~ N(0, 5^2), y_i ~ N(mu, 2^2): posterior and evidence are known."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), PRIOR_SD))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, NOISE_SD), obs=y)
    pyro.deterministic("twice", 2 * mu)


def posterior(y):
    """Mean and sd of the conjugate posterior."""
    precision = 1 / PRIOR_SD**2 + len(y) / NOISE_SD**2
    return float(y.sum()) / NOISE_SD**2 / precision, precision**-0.5


def evidence(y):
    """Log evidence of the conjugate model, in nats."""
    y = y.double()
    cov = NOISE_SD**2 * torch.eye(len(y)).double() + PRIOR_SD**2
    return float(
        torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), cov).log_prob(y)
    )


def eight_schools():
    """Centred; a funnel."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


class BrokenAfter:
    """A model that is NaN in the steps after the n-th, for a number of them.

    The number counts steps and not runs of the model, of which a fit makes as many as it likes
    before and after it trains: :meth:`watch` is a callback of the fit.
    """

    def __init__(self, first, count=math.inf):
        self.first, self.count, self.step = first, count, 0

    def watch(self, info):
        self.step = info.step

    def __call__(self, y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), PRIOR_SD))
        broken = self.first <= self.step < self.first + self.count
        with pyro.plate("data", len(y)):
            loc = mu * torch.nan if broken else mu
            pyro.sample("y", dist.Normal(loc, NOISE_SD), obs=y)
