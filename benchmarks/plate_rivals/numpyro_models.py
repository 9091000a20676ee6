"""The models of ``benchmarks/plates.py`` in NumPyro: globals, and the rows given these."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def _rows(count, batch):
    return numpyro.plate("rows", count, subsample_size=batch, dim=-1)


def two_scales(y, sigma, batch=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    return mu, numpyro.sample("tau", dist.HalfNormal(2.0))


def around_a_mean(found, y, sigma, batch=None):
    mu, tau = found
    with _rows(len(y), batch) as rows:
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma[rows]), obs=y[rows])


def nothing(y, batch=None):
    return None


def rows_skewed(found, y, batch=None):
    with _rows(len(y), batch) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(z - 1)), obs=y[rows])


def rows_bimodal(found, y, batch=None):
    with _rows(len(y), batch) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.5 * z**2, 0.4), obs=y[rows])


def rows_funnel(found, y, batch=None):
    with _rows(len(y), batch) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(1.5 * z / 2)))
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y[rows])


def items(y, seen, batch=None):
    count = y.shape[-1]
    steep = numpyro.sample("steep", dist.LogNormal(jnp.zeros(count), 0.5).to_event(1))
    return steep, numpyro.sample("hard", dist.Normal(jnp.zeros(count), 1.0).to_event(1))


def persons(found, y, seen, batch=None):
    steep, hard = found
    with _rows(len(y), batch) as rows:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        answers = dist.Bernoulli(logits=steep * (theta[..., None] - hard))
        numpyro.sample("y", answers.mask(seen[rows] > 0).to_event(1), obs=y[rows])


def scales(y, batch=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    names = ("spread", "inner", "noise")
    return mu, slope, *(numpyro.sample(name, dist.HalfNormal(1.0)) for name in names)


def counties(found, y, batch=None):
    mu, slope, spread, inner, noise = found
    outer = numpyro.plate("rows", len(y), subsample_size=batch, dim=-2)
    floors = numpyro.plate("floors", y.shape[1], dim=-1)
    with outer as rows:
        county = numpyro.sample("county", dist.Normal(mu, spread))
        with floors:
            level = county + slope * jnp.arange(y.shape[1])
            floor = numpyro.sample("floor", dist.Normal(level, inner))
            houses = jnp.broadcast_to(floor[..., None], (*floor.shape, y.shape[-1]))
            numpyro.sample("y", dist.Normal(houses, noise).to_event(1), obs=y[rows])


#: Model of the globals, of the rows given these, and the arguments of both.
MODELS = {
    "normal": (two_scales, around_a_mean, ("y", "sigma")),
    "funnel": (two_scales, around_a_mean, ("y", "sigma")),
    "rows_skewed": (nothing, rows_skewed, ("y",)),
    "rows_bimodal": (nothing, rows_bimodal, ("y",)),
    "rows_funnel": (nothing, rows_funnel, ("y",)),
    "irt": (items, persons, ("y", "seen")),
    "radon": (scales, counties, ("y",)),
}
