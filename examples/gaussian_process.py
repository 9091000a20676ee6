"""A Gaussian process whose length scale, amplitude and noise are inferred, not optimised.

The function values are integrated out, three hyper-parameters remain. Few data leave them wide and
skewed, which is why a point estimate is too sure of itself. The reference is exact: a grid over
all three.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import compare, tell
from _figure import FIT, GREY, INK, REFERENCE, STYLE, WIDTH

from pyro_nfvi import NFVI

NAMES = ("length", "amplitude", "noise")
PRIORS = {"length": (0.0, 0.7), "amplitude": (0.0, 0.7), "noise": (-1.5, 0.7)}


def make_data(n=18):
    generator = torch.Generator().manual_seed(1)
    x = 6 * torch.rand(n, generator=generator).sort().values
    return x, torch.sin(1.6 * x) + 0.25 * torch.randn(n, generator=generator)


def transformer(one, two, length, amplitude):
    squared = (one[:, None] - two[None, :]).square()
    return amplitude[..., None, None] ** 2 * torch.exp(
        -squared / (2 * length[..., None, None] ** 2)
    )


def covariance(x, length, amplitude, noise):
    variance = noise[..., None, None] ** 2 + 1e-6
    return transformer(x, x, length, amplitude) + variance * torch.eye(len(x))


def model(x, y):
    given = [pyro.sample(name, dist.LogNormal(*PRIORS[name])) for name in NAMES]
    zero = torch.zeros(len(x))
    pyro.sample("y", dist.MultivariateNormal(zero, covariance(x, *given)), obs=y)


def grid_draws(x, y, count, points):
    """Draw from the posterior on a grid in logarithms, where the priors are normal."""
    axes = [torch.linspace(mu - 4 * sd, mu + 4 * sd, points) for mu, sd in PRIORS.values()]
    logs = torch.cartesian_prod(*axes)
    prior = sum(
        dist.Normal(*PRIORS[name]).log_prob(log) for name, log in zip(NAMES, logs.unbind(-1))
    )
    found = []
    for part in logs.exp().split(4096):
        cov = covariance(x, *part.unbind(-1))
        found.append(dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(y))
    weights = (torch.cat(found) + prior).softmax(0)
    generator = torch.Generator().manual_seed(0)
    picked = logs[weights.multinomial(count, replacement=True, generator=generator)]
    cell = torch.stack([axis[1] - axis[0] for axis in axes])
    picked = picked + cell * (torch.rand(picked.shape, generator=generator) - 0.5)
    return dict(zip(NAMES, picked.exp().unbind(-1)))


def predict(draws, x, y, places):
    """Mean and sd of the function, over draws of the hyper-parameters."""
    given = [draws[name][:1000] for name in NAMES]
    factor = torch.linalg.cholesky(covariance(x, *given))
    cross = transformer(x, places, *given[:2])
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    target = torch.linalg.solve_triangular(
        factor, y[:, None].expand(len(cross), -1, 1), upper=False
    )
    mean = (half.mT @ target).squeeze(-1)
    variance = given[1][:, None] ** 2 - half.square().sum(-2)
    return mean.mean(0), (variance.mean(0) + mean.var(0)).clamp_min(0).sqrt()


def picture(draws, exact, x, y, path):
    places = torch.linspace(-0.5, 8.0, 150)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, 5.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
        grid = [above.subplots(), *below.subplots(1, 3)]
        mean, sd = predict(draws, x, y, places)
        other, other_sd = predict(exact, x, y, places)
        grid[0].fill_between(places, mean - 2 * sd, mean + 2 * sd, color=FIT, alpha=0.2, lw=0)
        grid[0].plot(places, mean, color=FIT, label="fit, 2 sd")
        for sign in (-2, 2):
            grid[0].plot(places, other + sign * other_sd, color=GREY, lw=0.9, ls="--",
                         label="exact, 2 sd" if sign > 0 else None)  # fmt: skip
        grid[0].plot(x, y, "o", color=INK, ms=3)
        grid[0].legend(loc="upper left", ncols=2)
        grid[0].set_ylim(-3.6, 3.9)
        grid[0].set_xlabel("x")
        grid[0].set_ylabel("y")
        for axes, name in zip(grid[1:], NAMES):
            top = float(exact[name].quantile(0.995))
            bins = torch.linspace(0, top, 45).numpy()
            axes.hist(exact[name], bins, density=True, color=REFERENCE, label="exact")
            axes.hist(draws[name], bins, density=True, histtype="step", color=FIT, label="fit")
            axes.set_title(name, loc="left")
            axes.set_yticks([])
        grid[-1].legend(loc="upper right")
        figure.suptitle("Gaussian process with hyper-parameters inferred", x=0.01, ha="left")
        figure.savefig(path)


def main():
    run = options(__doc__, "gaussian_process")
    x, y = make_data()
    steps = {"max_steps": 30} if run.smoke else {}
    fit = NFVI(model, seed=0, progress=not run.smoke, **steps).run(x, y)
    tell(fit)
    draws = fit.sample(20000, seed=1)
    exact = grid_draws(x, y, 20000, 12 if run.smoke else 50)
    logs = [{name: each[name].log() for name in NAMES} for each in (draws, exact)]
    mean, sd = compare(*logs, labels=("log, fit", "log, exact"))
    check("worst error of a mean, in sds", mean, 0.0, 0.1, smoke=run.smoke)
    check("worst error of an sd", sd, 0.0, 0.15, smoke=run.smoke)
    low, high = (float(exact["length"].quantile(level)) for level in (0.05, 0.95))
    print(f"the length scale lies between {low:.2f} and {high:.2f} with 90 %")
    picture(draws, exact, x, y, run.out / "gaussian_process.png")
    print(f"picture: {run.out / 'gaussian_process.png'}")


if __name__ == "__main__":
    main()
