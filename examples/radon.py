"""Hierarchical regression of radon on the floor of a house, partially pooled over counties.

The data are simulated in the likeness of the well-known survey of Minnesota: few houses in most
counties, many in some, less radon on upper floors, more where there is more uranium in the soil.
Nothing is downloaded. The reference: NUTS, started from the fit.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import compare, tell
from _figure import FIT, GREY, INK, STYLE, WIDTH

from pyro_nfvi import NFVI

COUNTIES = 30


def make_data():
    generator = torch.Generator().manual_seed(3)
    size = torch.exp(1.4 + 1.0 * torch.randn(COUNTIES, generator=generator)).long() + 1
    uranium = 0.4 * torch.randn(COUNTIES, generator=generator)
    level = 1.4 + 0.7 * uranium + 0.25 * torch.randn(COUNTIES, generator=generator)
    county = torch.arange(COUNTIES).repeat_interleave(size)
    floor = (torch.rand(len(county), generator=generator) < 0.2).double()
    noise = 0.75 * torch.randn(len(county), generator=generator)
    return county, floor, uranium, level[county] - 0.65 * floor + noise


def model(county, floor, uranium, log_radon):
    """Centred by county: with much noise and few houses a funnel, as practitioners meet it."""
    base = pyro.sample("base", dist.Normal(0.0, 5.0))
    soil = pyro.sample("soil", dist.Normal(0.0, 2.0))
    upstairs = pyro.sample("upstairs", dist.Normal(0.0, 2.0))
    between = pyro.sample("between", dist.HalfNormal(1.0))
    within = pyro.sample("within", dist.HalfNormal(1.0))
    with pyro.plate("counties", COUNTIES):
        mean = base + soil * uranium
        level = pyro.sample("level", dist.Normal(mean, between))
    with pyro.plate("houses", len(log_radon)):
        mean = level[..., county] + upstairs * floor
        pyro.sample("log_radon", dist.Normal(mean, within), obs=log_radon)


def picture(draws, exact, data, path):
    county, floor, _, log_radon = data
    size = torch.bincount(county, minlength=COUNTIES)
    order = size.argsort()
    place = torch.arange(COUNTIES)
    downstairs = floor == 0
    raw = [log_radon[(county == c) & downstairs].mean() for c in order]
    with plt.rc_context(STYLE):
        figure, (top, below) = plt.subplots(
            2, 1, figsize=(WIDTH, 6.6), layout="constrained", height_ratios=(1.2, 1)
        )
        for source, colour, shift, label in (
            (draws, FIT, -0.15, "fit, 90 %"),
            (exact, GREY, 0.15, "NUTS, 90 %"),
        ):
            low, middle, high = source["level"].quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
            top.vlines(place + shift, low[order], high[order], color=colour, lw=1.6)
            top.plot(place + shift, middle[order], "o", color=colour, ms=3, label=label)
        top.plot(place, raw, "x", color=INK, ms=4, label="mean of its ground floors")
        top.axhline(float(draws["base"].mean()), color=GREY, lw=0.8, ls=":",
                     label="base, mean over counties")  # fmt: skip
        # The number of houses, where it changes: counties with as many stand side by side.
        houses, first = size[order], [0]
        for i in range(1, COUNTIES):
            if houses[i] != houses[i - 1] and i - first[-1] > 1:  # labels need room
                first.append(i)
        top.set_xticks(first, [str(int(houses[i])) for i in first])
        top.set_xlabel("number of houses, by which the counties are ordered")
        top.set_ylabel("log radon, ground floor")
        top.legend(loc="upper right", ncols=2)
        top.set_ylim(top.get_ylim()[0], top.get_ylim()[1] + 0.8)
        below.scatter(draws["level"][:1500, order[0]], draws["between"][:1500].log(), s=4,
                      color=FIT, alpha=0.4, lw=0, label="fit")  # fmt: skip
        below.scatter(exact["level"][:1500, order[0]], exact["between"][:1500].log(), s=4,
                      color=GREY, alpha=0.5, lw=0, label="NUTS")  # fmt: skip
        below.set_xlabel("level of the smallest county")
        below.set_ylabel("log of the spread between counties")
        below.legend(loc="lower right", markerscale=3)
        figure.suptitle("Radon by county (simulated)", x=0.01, ha="left")
        figure.savefig(path)


def main():
    run = options(__doc__, "radon")
    data = make_data()
    steps = {"max_steps": 30} if run.smoke else {}
    fit = NFVI(model, seed=0, progress=not run.smoke, **steps).run(*data)
    tell(fit)
    draws = fit.sample(8000, seed=1)
    many = {"num_samples": 5, "warmup_steps": 5} if run.smoke else {"num_samples": 400}
    nuts = fit.to_nuts(seed=0, progress=not run.smoke, **many)
    print(nuts)
    exact = nuts.get_samples()
    mean, sd = compare(draws, exact, labels=("fit", "NUTS"))
    # NUTS has noise itself: 0.06 sds and 4 % at 300 effective draws; the worst of 35 counts.
    check("worst error of a mean, in sds", mean, 0.0, 0.25, smoke=run.smoke)
    check("worst error of an sd", sd, 0.0, 0.25, smoke=run.smoke)
    picture(draws, exact, data, run.out / "radon.png")
    print(f"picture: {run.out / 'radon.png'}")


if __name__ == "__main__":
    main()
