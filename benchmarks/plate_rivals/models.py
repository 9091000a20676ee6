"""The models of ``benchmarks/plates.py`` in Pyro, over all rows or mini-batches of them."""

import pyro
import pyro.distributions as dist
import torch


def _rows(count, batch):
    return pyro.plate("rows", count, subsample_size=batch, dim=-1)


def hierarchy(y, sigma, batch=None):
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(2.0)))
    with _rows(len(y), batch) as rows:
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma[rows]), obs=y[rows])


def rows_skewed(y, batch=None):
    with _rows(len(y), batch) as rows:
        z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Poisson((z - 1).exp()), obs=y[rows])


def rows_bimodal(y, batch=None):
    with _rows(len(y), batch) as rows:
        z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(0.5 * z.square(), 0.4), obs=y[rows])


def rows_funnel(y, batch=None):
    with _rows(len(y), batch) as rows:
        z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
        x = pyro.sample("x", dist.Normal(y.new_tensor(0.0), (1.5 * z / 2).exp()))
        pyro.sample("y", dist.Normal(x, 0.3), obs=y[rows])


def irt(y, seen, batch=None):
    items = y.shape[-1]
    steep = pyro.sample("steep", dist.LogNormal(y.new_zeros(items), 0.5).to_event(1))
    hard = pyro.sample("hard", dist.Normal(y.new_zeros(items), 1.0).to_event(1))
    with _rows(len(y), batch) as rows:
        theta = pyro.sample("theta", dist.Normal(y.new_tensor(0.0), 1.0))
        answers = dist.Bernoulli(logits=steep * (theta.unsqueeze(-1) - hard))
        pyro.sample("y", answers.mask(seen[rows] > 0).to_event(1), obs=y[rows])


def radon(y, batch=None):
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0))
    slope = pyro.sample("slope", dist.Normal(y.new_tensor(0.0), 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(y.new_tensor(1.0)))
    inner = pyro.sample("inner", dist.HalfNormal(y.new_tensor(1.0)))
    noise = pyro.sample("noise", dist.HalfNormal(y.new_tensor(1.0)))
    counties = pyro.plate("rows", len(y), subsample_size=batch, dim=-2)
    floors = pyro.plate("floors", y.shape[1], dim=-1)
    with counties as rows:
        county = pyro.sample("county", dist.Normal(mu, spread))
        with floors:
            level = slope * torch.arange(y.shape[1]).to(y)
            floor = pyro.sample("floor", dist.Normal(county + level, inner))
            houses = floor.unsqueeze(-1) + y.new_zeros(y.shape[-1])
            pyro.sample("y", dist.Normal(houses, noise.unsqueeze(-1)).to_event(1), obs=y[rows])


MODELS = {
    "normal": hierarchy,
    "funnel": hierarchy,
    "rows_skewed": rows_skewed,
    "rows_bimodal": rows_bimodal,
    "rows_funnel": rows_funnel,
    "irt": irt,
    "radon": radon,
}
#: Arguments of each model.
ARGUMENTS = {
    "normal": ("y", "sigma"),
    "funnel": ("y", "sigma"),
    "rows_skewed": ("y",),
    "rows_bimodal": ("y",),
    "rows_funnel": ("y",),
    "irt": ("y", "seen"),
    "radon": ("y",),
}
