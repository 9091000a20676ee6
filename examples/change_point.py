"""A change point that could be in two places: a posterior with two modes, and its exact answer.

The series steps up, and later down again, while the model allows one change only. Either step can
be it, and the levels before and after differ with the choice. The place is summed out; what is left
(two levels, a spread) has two modes. The reference is exact: for every place and every spread of a
grid the levels are normal.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import compare, tell
from _figure import FIT, GREY, INK, REFERENCE, STYLE, WIDTH

from pyro_nfvi import NFVI

PRIOR_SD = 3.0  # of the levels
NAMES = ("before", "after", "spread")


def make_data():
    generator = torch.Generator().manual_seed(5)
    level = torch.tensor([0.0, 2.0, 0.0]).repeat_interleave(15)
    return level + 0.5 * torch.randn(45, generator=generator)


def model(y):
    before = pyro.sample("before", dist.Normal(0.0, PRIOR_SD))
    after = pyro.sample("after", dist.Normal(0.0, PRIOR_SD))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    count = len(y)
    change = pyro.sample("change", dist.Categorical(torch.ones(count - 1)))
    # `change` is the last place of the first part.
    place = torch.arange(count)
    level = torch.where(place <= change[..., None], before[..., None], after[..., None])
    pyro.sample("y", dist.Normal(level, spread[..., None]).to_event(1), obs=y)


def exact_draws(y, count, points=400):
    """Draw from the posterior: place and spread from their table, then the levels, normal."""
    log_spread = torch.linspace(-2.0, 2.0, points)
    variance = torch.exp(2 * log_spread)
    tables, means, sds = dist.Normal(0.0, 0.5).log_prob(log_spread), [], []
    total = torch.zeros(points, len(y) - 1)
    for first in (True, False):
        for_all = []
        for change in range(len(y) - 1):
            part = y[: change + 1] if first else y[change + 1 :]
            precision = len(part) / variance + 1 / PRIOR_SD**2
            mean = part.sum() / variance / precision
            for_all.append((mean, precision.rsqrt()))
            # The likelihood with its level integrated out, at the spread: completed square.
            total[:, change] += (
                -0.5 * len(part) * variance.log()
                - 0.5 * part.square().sum() / variance
                + 0.5 * mean.square() * precision
                - 0.5 * precision.log()
            )
        means.append(torch.stack([one for one, _ in for_all], -1))
        sds.append(torch.stack([two for _, two in for_all], -1))
    table = total + tables[:, None]
    generator = torch.Generator().manual_seed(0)
    picked = table.flatten().softmax(0).multinomial(count, replacement=True, generator=generator)
    row, change = picked // table.shape[1], picked % table.shape[1]
    cell = (log_spread[1] - log_spread[0]) * (torch.rand(count, generator=generator) - 0.5)
    draws = {"spread": torch.exp(log_spread[row] + cell), "change": change}
    for name, mean, sd in zip(("before", "after"), means, sds):
        noise = torch.randn(count, generator=generator)
        draws[name] = mean[row, change] + sd[row, change] * noise
    return draws


def share_of_the_first(draws):
    """Posterior probability of the mode where the level rises."""
    return float((draws["after"] > draws["before"]).double().mean())


def picture(draws, exact, y, path):
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, 5.8), layout="constrained")
        above, below = figure.subfigures(2, 1)
        series = above.subplots()
        left, right = below.subplots(1, 2, sharey=True)
        series.plot(y, "o", color=INK, ms=3)
        series.set_ylim(float(y.min()) - 0.4, float(y.max()) + 1.6)
        twin = series.twinx()
        heights = torch.bincount(exact["change"], minlength=len(y)) / len(exact["change"])
        twin.bar(torch.arange(len(y)) + 0.5, heights, color=REFERENCE, width=0.9,
                 label="probability that the change comes here, exact")  # fmt: skip
        twin.set_ylim(0, 2.2 * float(heights.max()))
        twin.set_yticks([])
        twin.legend(loc="upper left")
        series.set_xlabel("time")
        series.set_ylabel("y")
        series.set_zorder(1)
        series.patch.set_visible(False)
        ends = [[float(exact[name].quantile(q)) for q in (0.0005, 0.9995)] for name in NAMES[:2]]
        for axes, source, colour, label in (
            (left, draws, FIT, "fit"), (right, exact, GREY, "exact")
        ):  # fmt: skip
            axes.scatter(source["before"][:4000], source["after"][:4000], s=4, color=colour,
                         alpha=0.35, lw=0)  # fmt: skip
            axes.set_xlim(ends[0])
            axes.set_ylim(ends[1])
            axes.set_xlabel("level before")
            share = share_of_the_first(source)
            axes.set_title(f"{label}: {100 * share:.0f} % rising", loc="left")
        left.set_ylabel("level after")
        figure.suptitle("One change point, two places for it", x=0.01, ha="left")
        figure.savefig(path)


def main():
    run = options(__doc__, "change_point")
    y = make_data()
    steps = {"max_steps": 30} if run.smoke else {}
    fit = NFVI(model, seed=0, progress=not run.smoke, **steps).run(y)
    tell(fit)
    draws = fit.sample(20000, seed=1)
    exact = exact_draws(y, 20000)
    compare(draws, {name: exact[name] for name in NAMES}, labels=("fit", "exact"))
    found, true = share_of_the_first(draws), share_of_the_first(exact)
    print(f"share of the mode with a rise: {found:.3f}, exactly {true:.3f}")
    check("its error", abs(found - true), 0.0, 0.03, smoke=run.smoke)
    picture(draws, exact, y, run.out / "change_point.png")
    print(f"picture: {run.out / 'change_point.png'}")


if __name__ == "__main__":
    main()
