"""Targets of Blessing et al. 2024 (arXiv:2406.07423), for ``benchmarks/beyond_elbos.py``.

Every one is a log density on R^D: of a posterior with its parameters unconstrained and the
log-determinant of that included.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributions as dist
from torch import Tensor
from torch.nn.functional import softplus

DOUBLE = torch.float64


@dataclass(frozen=True)
class Sampled:
    """A log density, and what is known of it.

    Attributes:
        log_density: ``(N, D) -> (N,)``, in nats.
        dim: D.
        log_z: Logarithm of its integral; None where it is not known.
        draw: Draws exact points ``(n, D)`` with a generator; None where that cannot be done.
        mode: Responsibilities ``(N, K)`` of the modes for points; None without modes.
        weights: Their shares ``(K,)``.
        moments: Mean and sd of ``values``; None where they are not known.
        values: Numbers ``(N, P)`` of points that moments are about.
    """

    log_density: Callable[[Tensor], Tensor]
    dim: int
    log_z: float | None = None
    draw: Callable[[int, torch.Generator], Tensor] | None = None
    mode: Callable[[Tensor], Tensor] | None = None
    weights: Tensor | None = None
    moments: Callable[[], tuple[Tensor, Tensor]] | None = None
    values: Callable[[Tensor], Tensor] = lambda z: z


def normal(x, loc, scale):
    scale = torch.as_tensor(scale, dtype=x.dtype)
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def funnel(dim=10, scale=3.0):
    """Neal's funnel."""

    def log_density(z):
        width = (z[:, :1] / 2).exp()
        return normal(z[:, 0], 0.0, scale) + normal(z[:, 1:], 0.0, width).sum(-1)

    def draw(count, noise):
        neck = scale * randn(count, 1, generator=noise)
        return torch.cat([neck, (neck / 2).exp() * randn(count, dim - 1, generator=noise)], -1)

    mean = torch.zeros(dim, dtype=DOUBLE)
    sd = torch.full((dim,), math.exp(scale**2 / 4), dtype=DOUBLE)
    sd[0] = scale
    return Sampled(log_density, dim, 0.0, draw, moments=lambda: (mean, sd))


def mixture(parts, places, spread, draw_part):
    """A mixture of equal shares; ``parts`` gives log densities ``(N, K)``."""
    count = len(places)

    def log_density(z):
        return torch.logsumexp(parts(z), -1) - math.log(count)

    def draw(number, noise):
        which = torch.randint(count, (number,), generator=noise)
        return places[which] + draw_part(number, noise)

    moments = None
    if spread is not None:
        sd = (places.var(0, correction=0) + spread**2).sqrt()
        moments = lambda: (places.mean(0), sd)  # noqa: E731
    even = torch.full((count,), 1 / count, dtype=DOUBLE)
    mode = lambda z: parts(z).softmax(-1)  # noqa: E731
    return Sampled(log_density, places.shape[1], 0.0, draw, mode, even, moments)


def gmm40():
    """Forty Gaussians at places uniform in a square."""
    noise = torch.Generator().manual_seed(0)
    places = 80 * torch.rand(40, 2, generator=noise, dtype=DOUBLE) - 40
    scale = math.log1p(math.e)

    def parts(z):
        return normal(z.unsqueeze(-2), places, scale).sum(-1)

    return mixture(parts, places, scale, lambda n, g: scale * randn(n, 2, generator=g))


def student_t():
    """Ten Student t with two degrees of freedom, which have no variance."""
    noise = torch.Generator().manual_seed(0)
    places = 20 * torch.rand(10, 2, generator=noise, dtype=DOUBLE) - 10
    law = dist.StudentT(torch.tensor(2.0, dtype=DOUBLE))

    def draw_part(count, generator):
        u = torch.rand(count, 2, generator=generator, dtype=DOUBLE)
        return (2 * u - 1) / (2 * u * (1 - u)).sqrt()  # its inverse distribution function

    parts = lambda z: law.log_prob(z.unsqueeze(-2) - places).sum(-1)  # noqa: E731
    return mixture(parts, places, None, draw_part)


def many_well(dim=32):
    """Double wells in half of the coordinates."""
    from benchmarks.modes_targets import many_well as known

    def log_density(z):
        wells, rest = z[:, ::2], z[:, 1::2]
        inner = -(wells**4) + 6 * wells**2 + 0.5 * wells
        return inner.sum(-1) - 0.5 * rest.square().sum(-1)

    grid = torch.linspace(-4, 4, 400_001, dtype=DOUBLE)
    share = (-(grid**4) + 6 * grid**2 + 0.5 * grid).softmax(0)
    mean = (share * grid).sum()
    sd = ((share * grid**2).sum() - mean**2).sqrt()
    means, sds = torch.zeros(dim, dtype=DOUBLE), torch.ones(dim, dtype=DOUBLE)
    means[::2], sds[::2] = mean, sd
    cumulative = share.cumsum(0)

    def draw(count, noise):
        z = randn(count, dim, generator=noise)
        level = torch.rand(count, dim // 2, generator=noise, dtype=DOUBLE)
        place = torch.searchsorted(cumulative, level).clamp(max=len(grid) - 1)
        z[:, ::2] = grid[place]
        return z

    return Sampled(log_density, dim, known(dim).log_evidence, draw, moments=lambda: (means, sds))


def cancer():
    """Logistic regression on the breast cancer data of scikit-learn, standardised."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    x = torch.as_tensor(data.data, dtype=DOUBLE)
    x = torch.cat([torch.ones(len(x), 1, dtype=DOUBLE), (x - x.mean(0)) / x.std(0)], -1)
    y = torch.as_tensor(data.target, dtype=DOUBLE)

    def log_density(z):
        logits = z @ x.T
        return normal(z, 0.0, 1.0).sum(-1) + (y * logits - softplus(logits)).sum(-1)

    return Sampled(log_density, x.shape[1])


#: Seeds that germinated, of so many, in 21 plates of two kinds of seed and of root extract
#: (Crowder 1978, Applied Statistics 27, 34).
GERMINATED = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
SOWN = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
SEED = [0] * 11 + [1] * 10
EXTRACT = [0] * 5 + [1] * 6 + [0] * 5 + [1] * 5


def seeds():
    """A random-effects logistic regression; the last number is the logarithm of the precision."""
    r, n, kind, extract = (
        torch.tensor(values, dtype=DOUBLE) for values in (GERMINATED, SOWN, SEED, EXTRACT)
    )
    x = torch.stack([torch.ones_like(r), kind, extract, kind * extract])
    ways = (torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)).sum()

    def log_density(z):
        fixed, effects, log_tau = z[:, :4], z[:, 4:25], z[:, 25:]
        logits = fixed @ x + effects
        prior = normal(fixed, 0.0, 10.0).sum(-1)
        prior = prior + normal(effects, 0.0, (-0.5 * log_tau).exp()).sum(-1)
        tau = 0.01 * log_tau - 0.01 * log_tau.exp() + 0.01 * math.log(0.01) - math.lgamma(0.01)
        return prior + tau.squeeze(-1) + (r * logits - n * softplus(logits)).sum(-1) + ways

    return Sampled(log_density, 26)


#: Observations of a Brownian path at steps 1 to 10 and 21 to 30: those of the Inference Gym
#: (Sountsov et al. 2020, Apache 2.0).
PATH = [
    0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845, -0.1484156, -0.3250906,
    -0.22957903, -0.44110894, -0.09830782, *[math.nan] * 10, -0.8786016, -0.83736074, -0.7384849,
    -0.8939254, -0.7774566, -0.70238715, -0.87771565, -0.51853573, -0.6948214, -0.6202789,
]  # fmt: skip


def brownian():
    """A Brownian path with both scales unknown: their logarithms come first.

    Given the scales all is normal, and the scales are integrated out on a grid.
    """
    y = torch.tensor(PATH, dtype=DOUBLE)
    seen = torch.isfinite(y)
    y = torch.where(seen, y, 0.0)

    def log_density(z):
        logs, path = z[:, :2], z[:, 2:]
        step, error = logs[:, :1].exp(), logs[:, 1:].exp()
        before = torch.cat([torch.zeros_like(path[:, :1]), path[:, :-1]], -1)
        likelihood = torch.where(seen, normal(y, path, error), 0.0).sum(-1)
        return normal(logs, 0.0, 2.0).sum(-1) + normal(path, before, step).sum(-1) + likelihood

    @functools.cache
    def integrated():
        count = len(y)
        index = torch.arange(1, count + 1, dtype=DOUBLE)
        walk = torch.minimum(index.unsqueeze(-1), index)
        axes = [
            torch.linspace(-5, 1, 241, dtype=DOUBLE),
            torch.linspace(-5, 1, 241, dtype=DOUBLE),
        ]
        logs = torch.cartesian_prod(*axes)
        eye = torch.eye(int(seen.sum()), dtype=DOUBLE)
        log_p, means, squares = [], [], []
        for rows in logs.split(4000):
            step, error = rows[:, 0].exp(), rows[:, 1].exp()
            prior = step.square().view(-1, 1, 1) * walk
            total = prior[:, seen][:, :, seen] + error.square().view(-1, 1, 1) * eye
            law = dist.MultivariateNormal(torch.zeros(len(eye), dtype=DOUBLE), total)
            log_p.append(law.log_prob(y[seen]) + normal(rows, 0.0, 2.0).sum(-1))
            gain = torch.linalg.solve(total, prior[:, seen]).mT  # (n, 30, seen)
            mean = (gain @ y[seen].unsqueeze(-1)).squeeze(-1)
            variance = (prior - gain @ prior[:, seen]).diagonal(dim1=-2, dim2=-1)
            means.append(torch.cat([rows, mean], -1))
            squares.append(torch.cat([rows.square(), variance + mean.square()], -1))
        log_p, mean, square = torch.cat(log_p), torch.cat(means), torch.cat(squares)
        weight = log_p.softmax(0).unsqueeze(-1)
        at = (weight * mean).sum(0)
        sd = ((weight * square).sum(0) - at.square()).sqrt()
        return float(torch.logsumexp(log_p, 0)) + 2 * math.log(6 / 240), at, sd

    return Sampled(log_density, 32, integrated()[0], moments=lambda: integrated()[1:])


TARGETS = {
    "funnel": funnel,
    "gmm40": gmm40,
    "student_t": student_t,
    "many_well": many_well,
    "brownian": brownian,
    "cancer": cancer,
    "seeds": seeds,
}
