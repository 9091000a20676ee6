"""The models in Pyro: ordinary ones, with plates, right with and without a plate of particles."""

import pyro
import pyro.distributions as dist
import torch

from benchmarks.engine_rivals.data import data


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        base = pyro.sample("base", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * base, sigma), obs=y)


def _logits(x, w, b):
    # w is (D,), or (particles, 1, D) in a plate of particles.
    return (w @ x.T if w.dim() == 1 else w.squeeze(-2) @ x.T) + b


def logistic(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=_logits(x, w, b)), obs=y)


def minibatch(x, y, size=256):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=size) as index:
        pyro.sample("y", dist.Bernoulli(logits=_logits(x[index], w, b)), obs=y[index])


def radon(county, floor, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfCauchy(5.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
    noise = pyro.sample("noise", dist.HalfCauchy(5.0))
    with pyro.plate("counties", 85):
        base = pyro.sample("base", dist.Normal(0.0, 1.0))
    level = mu + sd * base
    with pyro.plate("data", len(y)):
        loc = level[..., county] + slope * floor + 0.1 * shift
        pyro.sample("y", dist.Normal(loc, noise), obs=y)


MODELS = {f.__name__: f for f in (schools, logistic, minibatch, radon)} | {"wide": logistic}


def load(name):
    """Model and arguments."""
    return MODELS[name], tuple(torch.from_numpy(x) for x in data(name))
