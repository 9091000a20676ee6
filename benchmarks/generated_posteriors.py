"""Posteriors that are made by the hundred, each with exact means and sds.

Six families, 60 members each. Data of a member are drawn with its number as the seed; means and sds
of its latents come from closed forms or from quadrature, in double precision. The part of a member,
``"calibration"`` or ``"test"``, is the parity of a hash of its name: no result can change it.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

DOUBLE = torch.float64
#: Members of each family.
MEMBERS = 60
PARTS = ("calibration", "test")


@dataclass(frozen=True)
class Generated:
    """A posterior.

    Attributes:
        model: The Pyro model, without arguments.
        mean: Means by site.
        sd: Standard deviations by site.
    """

    model: Callable[[], None]
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


def part(name: str) -> str:
    """Return the part of a posterior: the parity of the first byte of its name's SHA-256."""
    return PARTS[hashlib.sha256(name.encode()).digest()[0] % 2]


def moments(points: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of points ``(N, D)`` of a regular grid with a log density ``(N,)``."""
    weight = log_p.softmax(0).unsqueeze(-1)
    mean = (weight * points).sum(0)
    return mean, (weight * (points - mean).square()).sum(0).sqrt()


def on_grid(log_density, centre: Tensor, spread: Tensor, points=401) -> tuple[Tensor, Tensor]:
    """Moments by a sum over a grid in two dimensions, moved to where the mass is in three rounds.

    The sum over a regular grid of a smooth density that vanishes at its edges converges faster than
    any power of the spacing.
    """
    for _ in range(4):
        axes = [
            torch.linspace(float(c - 10 * s), float(c + 10 * s), points, dtype=DOUBLE)
            for c, s in zip(centre, spread)
        ]
        grid = torch.cartesian_prod(*axes)
        centre, spread = moments(grid, log_density(grid))
    return centre, spread


# Families: the number of a member is the seed of its data.


def regression(noise):
    """A normal regression of known variance, with up to six correlated predictors."""
    dim = int(torch.randint(2, 7, (), generator=noise))
    rows = int(torch.randint(5, 60, (), generator=noise))
    mix = torch.eye(dim, dtype=DOUBLE) + torch.randn(dim, dim, generator=noise, dtype=DOUBLE)
    x = torch.randn(rows, dim, generator=noise, dtype=DOUBLE) @ mix
    y = x @ torch.randn(dim, generator=noise, dtype=DOUBLE)
    y = y + torch.randn(rows, generator=noise, dtype=DOUBLE)

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(dim, dtype=DOUBLE), 3.0).to_event(1))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal((x @ beta.unsqueeze(-1)).squeeze(-1), 1.0), obs=y)

    precision = x.T @ x + torch.eye(dim, dtype=DOUBLE) / 9
    covariance = torch.linalg.inv(precision)
    return Generated(model, {"beta": covariance @ x.T @ y}, {"beta": covariance.diagonal().sqrt()})


def rates(noise):
    """Poisson counts of some groups with gamma priors: gamma posteriors, shapes from 0.5 up."""
    count = int(torch.randint(1, 7, (), generator=noise))
    shape = 0.5 + 3 * torch.rand(count, generator=noise, dtype=DOUBLE)
    time = 0.2 + 10 * torch.rand(count, generator=noise, dtype=DOUBLE)
    y = torch.poisson(time * torch.distributions.Exponential(1.0).icdf(
        torch.rand(count, generator=noise, dtype=DOUBLE)), generator=noise)  # fmt: skip

    def model():
        with pyro.plate("groups", count):
            rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
            pyro.sample("y", dist.Poisson(rate * time), obs=y)

    after, scale = shape + y, 1 / (1 + time)
    return Generated(model, {"rate": after * scale}, {"rate": after.sqrt() * scale})


def normals(noise):
    """Normal data of unknown mean and variance, with the conjugate prior."""
    rows = int(torch.randint(3, 40, (), generator=noise))
    y = torch.randn(rows, generator=noise, dtype=DOUBLE) * (4 * torch.rand(
        (), generator=noise, dtype=DOUBLE) + 0.2) + 3  # fmt: skip
    a, b, k = 2.5, 1.0, 0.3

    def model():
        variance = pyro.sample("variance", dist.InverseGamma(torch.tensor(a, dtype=DOUBLE), b))
        mu = pyro.sample("mu", dist.Normal(0.0, (variance / k).sqrt()))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)

    after_k, after_a = k + rows, a + rows / 2
    mean = rows * y.mean() / after_k
    spread = (y - y.mean()).square().sum() / 2 + k * rows * y.mean() ** 2 / (2 * after_k)
    after_b = b + spread
    variance = after_b / (after_a - 1)
    return Generated(
        model,
        {"mu": mean, "variance": variance},
        {"mu": (variance / after_k).sqrt(), "variance": variance / math.sqrt(after_a - 2)},
    )


def hierarchy(noise):
    """Groups of known noise with an unknown mean and spread, as eight schools: a funnel of them.

    Given the spread all is normal, and the spread is integrated out on a grid.
    """
    groups = int(torch.randint(3, 10, (), generator=noise))
    error = 0.5 + 2 * torch.rand(groups, generator=noise, dtype=DOUBLE)
    spread = 2 * torch.rand((), generator=noise, dtype=DOUBLE)
    y = torch.randn(groups, generator=noise, dtype=DOUBLE) * (spread**2 + error**2).sqrt()

    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 3.0))
        tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(2.0, dtype=DOUBLE)))
        with pyro.plate("groups", groups):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, error), obs=y)

    tau = torch.linspace(0, 16, 160_001, dtype=DOUBLE)[1:].unsqueeze(-1)
    total = tau**2 + error**2
    variance = 1 / (1 / 9 + (1 / total).sum(-1, keepdim=True))
    mean = variance * (y / total).sum(-1, keepdim=True)
    log_p = dist.HalfNormal(2.0).log_prob(tau.squeeze(-1))
    log_p = log_p + (-0.5 * total.log() - 0.5 * y**2 / total).sum(-1)
    log_p = log_p + 0.5 * (variance.log() + mean**2 / variance).squeeze(-1)
    weight = log_p.softmax(0).unsqueeze(-1)
    shrink = tau**2 / total
    centre = shrink * y + (1 - shrink) * mean
    inner = shrink * error**2 + (1 - shrink) ** 2 * variance

    def overall(first, second):
        at = (weight * first).sum(0)
        return at, ((weight * (second + first**2)).sum(0) - at**2).sqrt()

    found = {
        "mu": overall(mean, variance),
        "tau": overall(tau, torch.zeros_like(tau)),
        "theta": overall(centre, inner),
    }
    return Generated(
        model,
        {name: value.squeeze() for name, (value, _) in found.items()},
        {name: value.squeeze() for name, (_, value) in found.items()},
    )


def logistic(noise):
    """A logistic regression with an intercept and a slope, of few rows: skewed."""
    rows = int(torch.randint(6, 40, (), generator=noise))
    x = torch.randn(rows, generator=noise, dtype=DOUBLE) * 2 + 1
    y = (torch.rand(rows, generator=noise, dtype=DOUBLE) < torch.sigmoid(x - 0.5)).to(DOUBLE)

    def model():
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 3.0))
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 3.0))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Bernoulli(logits=level + slope * x), obs=y)

    def log_density(z):
        prior = dist.Normal(0.0, 3.0).log_prob(z).sum(-1)
        for one, other in zip(x, y):
            logits = z[:, 0] + z[:, 1] * one
            prior = prior + other * logits - torch.nn.functional.softplus(logits)
        return prior

    mean, sd = on_grid(log_density, torch.zeros(2), torch.full((2,), 1.2))
    return _pair(model, ("level", "slope"), mean, sd)


def outliers(noise):
    """Place and log scale of Student t data with few degrees of freedom."""
    rows = int(torch.randint(4, 20, (), generator=noise))
    y = torch.randn(rows, generator=noise, dtype=DOUBLE)
    y[0] = y[0] + 8 * torch.rand((), generator=noise, dtype=DOUBLE)

    def model():
        place = pyro.sample("place", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 5.0))
        log_scale = pyro.sample("log_scale", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 1.0))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.StudentT(2.0, place, log_scale.exp()), obs=y)

    def log_density(z):
        found = dist.Normal(0.0, 5.0).log_prob(z[:, 0]) + dist.Normal(0.0, 1.0).log_prob(z[:, 1])
        for one in y:
            found = found + dist.StudentT(2.0, z[:, 0], z[:, 1].exp()).log_prob(one)
        return found

    mean, sd = on_grid(log_density, torch.zeros(2), torch.tensor([1.5, 0.6]))
    return _pair(model, ("place", "log_scale"), mean, sd)


def _pair(model, names, mean, sd):
    return Generated(model, dict(zip(names, mean)), dict(zip(names, sd)))


FAMILIES = {
    "regression": regression,
    "rates": rates,
    "normals": normals,
    "hierarchy": hierarchy,
    "logistic": logistic,
    "outliers": outliers,
}
#: Names of all members: the same numbers of all families side by side, so that the first ones of
#: a list hold some of each.
NAMES = tuple(f"{family}-{number:02d}" for number in range(MEMBERS) for family in FAMILIES)


def load(name: str) -> Generated:
    """Make a member."""
    family, number = name.split("-")
    noise = torch.Generator().manual_seed(1000 * list(FAMILIES).index(family) + int(number))
    return FAMILIES[family](noise)


def errors(draws: dict[str, Tensor], known: Generated) -> tuple[float, float]:
    """Worst error of a mean, in true sds, and of an sd, relative to the true one."""
    mean, sd = 0.0, 0.0
    for name, true in known.mean.items():
        value = draws[name].to(DOUBLE)
        mean = max(mean, float(((value.mean(0) - true) / known.sd[name]).abs().max()))
        sd = max(sd, float((value.std(0) / known.sd[name] - 1).abs().max()))
    return mean, sd
