"""The models of ``larger_models.py`` in NumPyro."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def logistic(X, y):
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(X.shape[-1]), 2.5).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def hierarchy(group, y, num_groups):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", num_groups):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal((mu + tau * raw)[group], sigma), obs=y)


def gaussian_process(x, y):
    rho = numpyro.sample("rho", dist.LogNormal(0.0, 1.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance = covariance + (sigma**2 + 1e-8) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


LARGER = {"logistic_50000": logistic, "hierarchy_1000": hierarchy, "gp_100": gaussian_process}
