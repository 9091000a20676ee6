"""Data, truths and held-out scores of the models of ``benchmarks/plates.py``.

Data have what they were made with, ``true_<site>``, by which intervals are judged. A case makes
data of a size as NumPy arrays, which every process reads; the models themselves stand in
``models.py`` for Pyro and in ``numpyro_models.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: Rows whose marginals are compared with the truth, one by one.
COMPARED = 500


@dataclass(frozen=True)
class Truth:
    """The posterior by quadrature: evidence in nats, means and sds by site."""

    evidence: float
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def compared_rows(count: int) -> np.ndarray:
    """Rows that are compared: evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(COMPARED, count)).astype(int))


# ------------------------------------------------------------------- hierarchies of normals


def hierarchy(count: int, seed: int, *, funnel: bool) -> dict[str, np.ndarray]:
    """``theta ~ N(mu, tau)``, ``y ~ N(theta, sigma)``; a funnel where sigma is large and varies."""
    rng = np.random.default_rng(seed)
    tau, low, high = (0.5, 0.5, 2.0) if funnel else (0.7, 0.5, 0.5)
    sigma = rng.uniform(low, high, count)
    theta = 1 + tau * rng.standard_normal(count)
    y, later = (theta + sigma * rng.standard_normal(count) for _ in range(2))
    return {"y": y, "sigma": sigma, "later": later, "true_theta": theta}


def hierarchy_truth(data: dict[str, np.ndarray]) -> Truth:
    """Integrate mu in closed form, and log tau on a grid that is laid around its mode."""
    y, sigma = (torch.from_numpy(data[name]) for name in ("y", "sigma"))

    def sums(grid: Tensor) -> tuple[Tensor, ...]:
        total = [torch.zeros_like(grid) for _ in range(4)]
        for some, scale in zip(y.split(20_000), sigma.split(20_000)):
            variance = scale.square() + (2 * grid).exp()[:, None]
            parts = (1 / variance, some / variance, some.square() / variance, variance.log())
            total = [a + b.sum(-1) for a, b in zip(total, parts)]
        return tuple(total)

    def log_marginal(grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inverse, first, second, logs = sums(grid)
        precision = inverse + 1 / 25
        mean = first / precision
        prior = torch.distributions.HalfNormal(2.0).log_prob(grid.exp()) + grid
        value = -0.5 * (len(y) * math.log(2 * math.pi) + logs + second) - math.log(5.0)
        return value + 0.5 * first * mean - 0.5 * precision.log() + prior, mean, precision

    low, high = -5.0, 3.0
    for _ in range(6):
        grid = torch.linspace(low, high, 41, dtype=torch.float64)
        value = log_marginal(grid)[0]
        near = (value > value.max() - 30).nonzero().squeeze(-1)
        step = float(grid[1] - grid[0])
        low = float(grid[near[0]]) - step
        high = float(grid[near[-1]]) + step
    grid = torch.linspace(low, high, 401, dtype=torch.float64)
    value, mean, precision = log_marginal(grid)
    evidence = float(value.logsumexp(0)) + math.log(float(grid[1] - grid[0]))
    weight = (value - value.logsumexp(0)).exp()
    tau = grid.exp()
    rows = torch.from_numpy(compared_rows(len(y)))
    shrink = (tau.square()[:, None]) / (sigma[rows].square() + tau.square()[:, None])
    centre = shrink * y[rows] + (1 - shrink) * mean[:, None]
    spread = shrink * sigma[rows].square() + (1 - shrink).square() / precision[:, None]
    return Truth(
        evidence,
        {
            "mu": _mixed(weight, mean, 1 / precision),
            "tau": _mixed(weight, tau, torch.zeros_like(tau)),
            "theta": _mixed(weight[:, None], centre, spread),
        },
    )


def _mixed(weight: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a mixture over the grid on axis 0."""
    first = (weight * mean).sum(0)
    return first, (weight * (variance + (mean - first).square())).sum(0).sqrt()


def hierarchy_held_out(data: dict[str, np.ndarray], draws: dict[str, Tensor]) -> float:
    """A second observation of each compared row."""
    rows = compared_rows(len(data["y"]))
    later, sigma = (torch.from_numpy(data[name][rows]) for name in ("later", "sigma"))
    log_p = torch.distributions.Normal(draws["theta"], sigma).log_prob(later)
    return float((log_p.logsumexp(0) - math.log(len(log_p))).mean())


# ---------------------------------------------------------- rows whose posteriors are no normal


def rows_apart(count: int, seed: int, *, kind: str) -> dict[str, np.ndarray]:
    """Rows without globals: each posterior is known by quadrature."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(count)
    if kind == "skewed":  # few counts
        y, later = (rng.poisson(np.exp(z - 1)).astype(float) for _ in range(2))
    elif kind == "bimodal":  # the sign is lost
        y, later = (0.5 * z**2 + 0.4 * rng.standard_normal(count) for _ in range(2))
    else:  # a scale of its own for each row
        x = np.exp(1.5 * z / 2) * rng.standard_normal(count)
        y, later = (x + 0.3 * rng.standard_normal(count) for _ in range(2))
        return {"y": y, "later": later, "true_z": z, "true_x": x}
    return {"y": y, "later": later, "true_z": z}


def _log_likelihood(kind: str, y: Tensor, z: Tensor) -> Tensor:
    """Log likelihood of rows ``(R,)`` on a grid ``(K,)``: ``(R, K)``; x of a funnel is out."""
    if kind == "skewed":
        return torch.distributions.Poisson((z - 1).exp()).log_prob(y[:, None])
    if kind == "bimodal":
        return torch.distributions.Normal(0.5 * z.square(), 0.4).log_prob(y[:, None])
    scale = ((1.5 * z).exp() + 0.09).sqrt()
    return torch.distributions.Normal(torch.zeros_like(scale), scale).log_prob(y[:, None])


def rows_truth(data: dict[str, np.ndarray], *, kind: str) -> Truth:
    """Quadrature row by row."""
    y = torch.from_numpy(data["y"])
    z = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z) + math.log(float(z[1] - z[0]))
    evidence = sum(
        float((_log_likelihood(kind, some, z) + prior).logsumexp(-1).sum())
        for some in y.split(20_000)
    )
    rows = y[torch.from_numpy(compared_rows(len(y)))]
    weight = (_log_likelihood(kind, rows, z) + prior).softmax(-1).T
    found = {"z": _mixed(weight, z[:, None].expand_as(weight), torch.zeros_like(weight))}
    if kind == "funnel":
        variance = (1.5 * z).exp()[:, None]
        share = variance / (variance + 0.09)
        found["x"] = _mixed(weight, share * rows, share * 0.09 + 0 * rows)
    return Truth(evidence, found)


def rows_held_out(data: dict[str, np.ndarray], draws: dict[str, Tensor], *, kind: str) -> float:
    """A second observation of each compared row."""
    later = torch.from_numpy(data["later"][compared_rows(len(data["y"]))])
    if kind == "skewed":
        fn = torch.distributions.Poisson((draws["z"] - 1).exp())
    elif kind == "bimodal":
        fn = torch.distributions.Normal(0.5 * draws["z"].square(), 0.4)
    else:
        fn = torch.distributions.Normal(draws["x"], 0.3)
    log_p = fn.log_prob(later)
    return float((log_p.logsumexp(0) - math.log(len(log_p))).mean())


# --------------------------------------------------------------------------- item response


def irt(count: int, seed: int) -> dict[str, np.ndarray]:
    """Two-parameter logistic answers of persons to 30 items; one in ten answers is held out."""
    rng = np.random.default_rng(seed)
    theta, hard = rng.standard_normal(count), rng.standard_normal(30)
    steep = np.exp(0.5 * rng.standard_normal(30))
    chance = 1 / (1 + np.exp(-steep * (theta[:, None] - hard)))
    y = (rng.random((count, 30)) < chance).astype(float)
    seen = (rng.random((count, 30)) > 0.1).astype(float)
    return {"y": y, "seen": seen, "true_theta": theta}


def irt_held_out(data: dict[str, np.ndarray], draws: dict[str, Tensor]) -> float:
    """The answers that were held out, of the compared persons."""
    rows = compared_rows(len(data["y"]))
    y, seen = (torch.from_numpy(data[name][rows]) for name in ("y", "seen"))
    steep, hard = draws["steep"].unsqueeze(1), draws["hard"].unsqueeze(1)
    logits = steep * (draws["theta"].unsqueeze(-1) - hard)
    log_p = torch.distributions.Bernoulli(logits=logits).log_prob(y)
    log_p = log_p.logsumexp(0) - math.log(len(log_p))
    return float(log_p[seen == 0].mean())


# ------------------------------------------------------------------------- nested regression


def radon(count: int, seed: int) -> dict[str, np.ndarray]:
    """Houses on floors of counties: three observed a floor, one held out."""
    rng = np.random.default_rng(seed)
    county = 1.3 + 0.4 * rng.standard_normal(count)
    floor = county[:, None] - 0.5 * np.arange(3) + 0.3 * rng.standard_normal((count, 3))
    y = floor[..., None] + 0.6 * rng.standard_normal((count, 3, 4))
    seen, later = y[..., :3].copy(), y[..., 3].copy()
    return {"y": seen, "later": later, "true_county": county, "true_floor": floor}


def radon_held_out(data: dict[str, np.ndarray], draws: dict[str, Tensor]) -> float:
    """The fourth house on each floor of the compared counties."""
    later = torch.from_numpy(data["later"][compared_rows(len(data["y"]))])
    noise = draws["noise"].reshape(-1, 1, 1)
    log_p = torch.distributions.Normal(draws["floor"], noise).log_prob(later)
    return float((log_p.logsumexp(0) - math.log(len(log_p))).mean())


@dataclass(frozen=True)
class Case:
    """A model, its sizes, and what is known of it.

    Attributes:
        title: Words for the page.
        sizes: Rows, by default.
        smoke: Rows of a smoke run.
        sites: Latent sites: True for those with a row for each row of the plate.
    """

    title: str
    sizes: tuple[int, ...]
    smoke: int
    sites: dict[str, bool]
    make: object
    truth: object
    held_out: object


def _apart(kind: str, title: str) -> Case:
    sites = {"z": True} | ({"x": True} if kind == "funnel" else {})
    return Case(
        title,
        (100_000,),
        40,
        sites,
        lambda count, seed: rows_apart(count, seed, kind=kind),
        lambda data: rows_truth(data, kind=kind),
        lambda data, draws: rows_held_out(data, draws, kind=kind),
    )


CASES = {
    "normal": Case(
        "A hierarchy of normals",
        (1_000, 10_000, 100_000, 1_000_000),
        40,
        {"mu": False, "tau": False, "theta": True},
        lambda count, seed: hierarchy(count, seed, funnel=False),
        hierarchy_truth,
        hierarchy_held_out,
    ),
    "funnel": Case(
        "A centred funnel, with data that say little of a row",
        (10_000,),
        40,
        {"mu": False, "tau": False, "theta": True},
        lambda count, seed: hierarchy(count, seed, funnel=True),
        hierarchy_truth,
        hierarchy_held_out,
    ),
    "rows_skewed": _apart("skewed", "Rows of few counts: skewed posteriors"),
    "rows_bimodal": _apart("bimodal", "Rows whose sign is lost: two modes each"),
    "rows_funnel": _apart("funnel", "Rows with a scale of their own: a funnel each"),
    "irt": Case(
        "Item response, two parameters an item",
        (2_000,),
        40,
        {"steep": False, "hard": False, "theta": True},
        irt,
        None,
        irt_held_out,
    ),
    "radon": Case(
        "A regression on floors of counties",
        (1_000,),
        40,
        {"mu": False, "slope": False, "spread": False, "inner": False, "noise": False,
         "county": True, "floor": True},
        radon,
        None,
        radon_held_out,
    ),
}  # fmt: skip
