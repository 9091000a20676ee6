"""Larger posteriors beside the sixteen: a logistic regression, a hierarchy, a Gaussian process.

The two others of the five are among the sixteen: the differential equation of hudson_lynx_hare
and irt_2pl. There are no published draws: what is compared with is a long run of NumPyro's NUTS.
"""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks.posteriordb import Posterior


def logistic(X, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[-1]), 2.5).to_event(1))
    logits = (beta @ X.T).reshape((*beta.shape[:-2], len(y)))  # particles stand left of rows
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def hierarchy(group, y, num_groups):
    num_groups = int(num_groups)
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(2.0)))
    with pyro.plate("groups", num_groups):
        raw = pyro.sample("raw", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal((mu + tau * raw)[..., group], sigma), obs=y)


def gaussian_process(x, y):
    rho = pyro.sample("rho", dist.LogNormal(torch.tensor(0.0), 1.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(torch.tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(1.0)))
    wide = [one.reshape((*one.shape, 1, 1)) for one in (rho, alpha, sigma)]
    square = ((x[:, None] - x) / wide[0]) ** 2
    covariance = wide[1] ** 2 * torch.exp(-0.5 * square)
    covariance = covariance + (wide[2] ** 2 + 1e-8) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def logistic_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50_000, 10))
    X[:, 0] = 1.0
    beta = rng.standard_normal(10)
    return {"X": X, "y": (rng.random(50_000) < 1 / (1 + np.exp(-X @ beta))).astype(float)}


def hierarchy_data():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(1000), 5)
    theta = 1.0 + 0.7 * rng.standard_normal(1000)
    return {"group": group, "y": theta[group] + rng.standard_normal(5000), "num_groups": 1000}


def gp_data():
    rng = np.random.default_rng(2)
    x = np.sort(rng.random(100)) * 10
    return {"x": x, "y": np.sin(x) + 0.3 * rng.standard_normal(100)}


#: Name: model, data, and the sites that are compared.
LARGER = {
    "logistic_50000": (logistic, logistic_data, ("beta",)),
    "hierarchy_1000": (hierarchy, hierarchy_data, ("mu", "tau", "sigma")),
    "gp_100": (gaussian_process, gp_data, ("rho", "alpha", "sigma")),
}


@dataclass(frozen=True)
class Long:
    """Draws of a long run, in the place of a reference."""

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    draws: np.ndarray
    floor: dict


def load_larger(name, reference=None):
    """A posterior of ``LARGER``; set float64 as default dtype first."""
    model, make, sites = LARGER[name]
    data = {
        key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in make().items()
    }
    return Posterior(name, model, data, reference, sites, "")
