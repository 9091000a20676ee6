"""Posteriors with several modes whose masses are known, for ``benchmarks/modes.py`` and tests.

None of them can be drawn from by running the model: the modes have to be found.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch

#: Standard deviation of the prior in which the modes of the made-up densities lie.
WIDE = 10.0


@dataclass(frozen=True)
class Target:
    """A model without arguments, and its modes.

    Attributes:
        title: What it is, in a few words.
        model: The Pyro model.
        mode: Maps draws by site to the number of the mode they belong to.
        weights: Mass of each mode.
    """

    title: str
    model: Callable[[], None]
    mode: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    weights: torch.Tensor


def by_density(log_density, dim):
    """A model with a density of the sites' vector z, known up to the wide prior."""

    def model():
        prior = dist.Normal(torch.zeros(dim), WIDE).to_event(1)
        z = pyro.sample("z", prior)
        pyro.factor("rest", log_density(z) - prior.log_prob(z))

    return model


def gaussians(dim, weights, seed, size):
    """Gaussians of various shapes at random places, no two of which touch."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(weights)
    while True:
        locs = size * torch.randn(len(weights), dim, generator=generator)
        if float(torch.pdist(locs).min()) > 7.0:
            break
    shape = torch.randn(len(weights), dim, dim, generator=generator) / dim**0.5
    covs = 0.3 * torch.eye(dim) + 0.5 * shape @ shape.mT
    parts = dist.MultivariateNormal(locs, covs)
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)

    def mode(draws):
        return parts.log_prob(draws["z"].unsqueeze(-2)).argmax(-1)

    title = f"{len(weights)} Gaussians, {dim}-D"
    return Target(title, by_density(mixture.log_prob, dim), mode, weights)


def bananas():
    """Three bent ridges in the plane, turned against each other."""
    weights = torch.tensor([0.5, 0.3, 0.2])
    places = torch.tensor([[-8.0, 0.0], [8.0, 4.0], [3.0, -9.0]])
    angles = torch.tensor([0.0, 2.0, 4.0])
    turn = torch.stack(
        [
            torch.stack([angles.cos(), -angles.sin()], -1),
            torch.stack([angles.sin(), angles.cos()], -1),
        ],
        -2,
    )

    def each(z):
        """Log density of each banana ``(*b, 3)``: y2 is bent by a square of y1, volume kept."""
        y = (turn.mT @ (z.unsqueeze(-2) - places).unsqueeze(-1)).squeeze(-1)
        wide = dist.Normal(0.0, 1.5).log_prob(y[..., 0])
        return wide + dist.Normal(0.6 * (y[..., 0].square() - 2.25), 0.4).log_prob(y[..., 1])

    def log_density(z):
        return torch.logsumexp(each(z) + weights.log(), -1)

    def mode(draws):
        return each(draws["z"]).argmax(-1)

    return Target("3 bananas, 2-D", by_density(log_density, 2), mode, weights)


def switching(count, size=60):
    """A mixture model whose components have no names: every order of them is a mode."""
    generator = torch.Generator().manual_seed(3)
    true = torch.linspace(-4.0, 4.0, count)
    kind = torch.arange(size) % count
    y = true[kind] + 0.7 * torch.randn(size, generator=generator)

    def model():
        shares = pyro.sample("shares", dist.Dirichlet(3.0 * torch.ones(count)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(count), 5.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(2.0)))
        with pyro.plate("data", size):
            parts = dist.Normal(loc.unsqueeze(-2), scale[..., None, None])
            mixture = dist.MixtureSameFamily(dist.Categorical(shares.unsqueeze(-2)), parts)
            pyro.sample("y", mixture, obs=y)

    orders = torch.tensor(list(itertools.permutations(range(count))))

    def mode(draws):
        order = draws["loc"].argsort(-1)
        return (order.unsqueeze(-2) == orders).all(-1).long().argmax(-1)

    even = torch.full((len(orders),), 1 / len(orders))
    return Target(f"label switching, {count} components", model, mode, even)


def regression():
    """A line whose slope is known up to its sign; the prior prefers a positive one."""
    generator = torch.Generator().manual_seed(5)
    x = torch.linspace(-1.0, 2.0, 25)
    y = 1.2 * x + 0.5 + 0.4 * torch.randn(25, generator=generator)
    prior = dist.Normal(0.4, 1.0)

    def model():
        slope = pyro.sample("slope", prior)
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0), 2.0))
        noise = pyro.sample("noise", dist.HalfNormal(torch.tensor(1.0)))
        with pyro.plate("data", 25):
            pyro.sample("y", dist.Normal(slope.abs() * x + level, noise), obs=y)

    # The likelihood knows |slope| alone: integrate level and noise out on a grid.
    size, level, noise = torch.meshgrid(
        torch.linspace(0.5, 2.0, 151),
        torch.linspace(-0.5, 1.5, 101),
        torch.linspace(0.15, 1.2, 106),
        indexing="ij",
    )
    log_p = dist.Normal(0.0, 2.0).log_prob(level) + dist.HalfNormal(1.0).log_prob(noise)
    for one, other in zip(x, y):
        log_p = log_p + dist.Normal(size * one + level, noise).log_prob(other)
    sides = torch.stack([(log_p + prior.log_prob(s * size)).logsumexp((0, 1, 2)) for s in (1, -1)])

    def mode(draws):
        return (draws["slope"] < 0).long()

    return Target("regression, sign unknown", model, mode, torch.softmax(sides, 0))


@dataclass(frozen=True)
class Many:
    """A posterior of so many modes that only probabilities of sides or places can be compared.

    Attributes:
        title: What it is, in a few words.
        modes: Number of its modes, in words.
        model: The Pyro model.
        shares: Maps draws by site to shares ``(K,)``.
        true: These shares.
        log_evidence: Log evidence, in nats.
    """

    title: str
    modes: str
    model: Callable[[], None]
    shares: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    true: torch.Tensor
    log_evidence: float


def _on_grid(log_p, low, high, count=400_001):
    """Log of the integral of exp(log_p), and the share right of 0."""
    grid = torch.linspace(low, high, count, dtype=torch.float64)
    found = log_p(grid)
    evidence = float(torch.logsumexp(found, 0)) + math.log((high - low) / (count - 1))
    return evidence, float(found.softmax(0)[grid > 0].sum())


def signs(count):
    """Values whose signs were lost, in a plate; the prior prefers positive ones."""
    generator = torch.Generator().manual_seed(count)
    y = torch.randn(count, generator=generator).abs()
    noise = 0.05

    def model():
        with pyro.plate("values", count):
            z = pyro.sample("z", dist.Normal(0.1, 1.0))
            pyro.sample("y", dist.Normal(z.abs(), noise), obs=y)

    each = [
        _on_grid(
            lambda z, one=one: (
                dist.Normal(0.1, 1.0).log_prob(z) + dist.Normal(z.abs(), noise).log_prob(one)
            ),
            -8.0,
            8.0,
        )
        for one in y.double()
    ]
    return Many(
        f"signs lost, plate of {count}",
        f"up to 2^{count}",
        model,
        lambda draws: (draws["z"] > 0).double().mean(0),
        torch.tensor([right for _, right in each], dtype=torch.float64),
        sum(evidence for evidence, _ in each),
    )


def signs_given_mean(count=20):
    """Values whose signs were lost, with a mean that is a latent too."""
    generator = torch.Generator().manual_seed(count)
    y = (torch.randn(count, generator=generator) + 0.3).abs()
    noise = 0.1

    def model():
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
        with pyro.plate("values", count):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z.abs(), noise), obs=y)

    means = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    prior = dist.Normal(means[:, None], 1.0).log_prob(grid)
    log_p, right = dist.Normal(0.0, 2.0).log_prob(means), []
    for one in y.double():
        each = prior + dist.Normal(grid.abs(), noise).log_prob(one)
        log_p = log_p + torch.logsumexp(each, -1) + math.log(16 / 8000)
        right.append(each.softmax(-1)[:, grid > 0].sum(-1))
    weights = log_p.softmax(0)
    return Many(
        f"signs lost, plate of {count}, mean unknown",
        f"up to 2^{count}",
        model,
        lambda draws: (draws["z"] > 0).double().mean(0),
        (torch.stack(right) * weights).sum(-1),
        float(torch.logsumexp(log_p, 0)) + math.log(16 / 1600),
    )


def many_well(dim=32):
    """Double wells in half of the coordinates, normals in the others (Many Well)."""
    wide = 3.0

    def log_density(z):
        wells, rest = z[..., ::2], z[..., 1::2]
        inner = -(wells**4) + 6 * wells**2 + 0.5 * wells
        return inner.sum(-1) - 0.5 * rest.square().sum(-1)

    def model():
        prior = dist.Normal(torch.zeros(dim), wide).to_event(1)
        z = pyro.sample("z", prior)
        pyro.factor("rest", log_density(z) - prior.log_prob(z))

    one, right = _on_grid(lambda x: -(x**4) + 6 * x**2 + 0.5 * x, -6.0, 6.0)
    half = dim // 2
    return Many(
        f"Many Well, {dim}-D",
        f"2^{half}",
        model,
        lambda draws: (draws["z"][:, ::2] > 0).double().mean(0),
        torch.full((half,), right, dtype=torch.float64),
        half * (one + 0.5 * math.log(2 * math.pi)),
    )


def forty_gaussians(seed=0):
    """Forty equal Gaussians at places drawn uniformly from a square (GMM-40)."""
    generator = torch.Generator().manual_seed(seed)
    places = 80 * torch.rand(40, 2, generator=generator) - 40
    scale = math.log1p(math.e)  # softplus(1)
    prior = dist.Normal(torch.zeros(2), 4 * WIDE).to_event(1)
    parts = dist.Normal(places, scale).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(40)), parts)

    def model():
        z = pyro.sample("z", prior)
        pyro.factor("rest", mixture.log_prob(z) - prior.log_prob(z))

    def shares(points):
        near = parts.log_prob(points.unsqueeze(-2)).argmax(-1)
        return torch.bincount(near, minlength=40) / len(points)

    draws = places.repeat_interleave(25_000, 0)
    draws = draws + scale * torch.randn(draws.shape, generator=generator)
    return Many(
        "40 Gaussians, 2-D",
        "40",
        model,
        lambda found: shares(found["z"]).double(),
        shares(draws).double(),
        0.0,
    )


#: Posteriors of very many modes.
MANY = {
    "signs_10": lambda: signs(10),
    "signs_50": lambda: signs(50),
    "signs_mean_20": signs_given_mean,
    "many_well_32": many_well,
    "gaussians_40": forty_gaussians,
}

TARGETS = {
    "gaussians_2": lambda: gaussians(2, [0.4, 0.3, 0.2, 0.1], 1, 6.0),
    "gaussians_10": lambda: gaussians(10, [0.4, 0.25, 0.2, 0.1, 0.05], 2, 4.0),
    "bananas": bananas,
    "switching_2": lambda: switching(2),
    "switching_3": lambda: switching(3),
    "regression": regression,
}
