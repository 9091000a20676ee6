"""A forecast with pyro.contrib.forecast: Pyro's forecaster draws through a guide that NFVI fitted.

A level that wanders and a covariate with a known future. The forecaster takes any guide, a flow
trained by its own SVI (`Forecaster(model, y, x, guide=AutoIAF(model))`), or one that is trained
already, with `num_steps=0`, as here: then the verdict says whether to trust it.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _figure import FIT, GREY, STYLE, WIDTH
from pyro.contrib.forecast import Forecaster, ForecastingModel, eval_crps

from pyro_nfvi import NFVI

SEEN, AHEAD = 40, 15


class LocalLevel(ForecastingModel):
    """A level that wanders, and a covariate."""

    def model(self, zero_data, covariates):
        start = pyro.sample("start", dist.Normal(0.0, 2.0))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1), 2.0).to_event(1))
        step = pyro.sample("step", dist.LogNormal(-2.0, 0.5))
        noise = pyro.sample("noise", dist.LogNormal(-1.5, 0.5))
        with self.time_plate:
            # Relative to its scale, which leaves no funnel where the data say little.
            moves = pyro.sample("moves", dist.Normal(0.0, 1.0))
        level = start + (step * moves).cumsum(-1) + (weight * covariates).sum(-1)
        self.predict(dist.Normal(0.0, noise.unsqueeze(-1)), level.unsqueeze(-1))


def make_data():
    generator = torch.Generator().manual_seed(3)
    count = SEEN + AHEAD
    x = torch.sin(torch.arange(count) / 3).unsqueeze(-1)
    wander = 0.1 * torch.randn(count, generator=generator).cumsum(0)
    y = 1 + wander + 1.5 * x[:, 0] + 0.2 * torch.randn(count, generator=generator)
    return y.unsqueeze(-1), x


def main():
    run = options(__doc__, "forecast")
    y, x = make_data()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = LocalLevel()
    fit = NFVI(
        model, "gaussian" if run.smoke else "iaf*1", explore="off", seed=0,
        max_steps=50 if run.smoke else 1500, progress=not run.smoke,
    ).run(y[:SEEN], x[:SEEN])  # fmt: skip
    print(f"verdict: {fit.verdict}")
    forecaster = Forecaster(model, y[:SEEN], x[:SEEN], guide=fit.guide, num_steps=0)
    draws = forecaster(y[:SEEN], x, num_samples=1000).reshape(1000, AHEAD)
    future = y[SEEN:, 0]
    low, high = draws.quantile(torch.tensor([0.1, 0.9]), 0)
    share = float(((future > low) & (future < high)).double().mean())
    print(f"CRPS {eval_crps(draws.unsqueeze(-1), y[SEEN:]):.3f}")
    check("share of the future in the 80 % band", share, 0.6, 1.0, smoke=run.smoke)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 0.5 * WIDTH), layout="constrained")
        times = torch.arange(SEEN + AHEAD)
        axis.plot(times, y[:, 0], "o", color=GREY, markersize=3, label="series")
        axis.fill_between(times[SEEN:], low, high, color=FIT, alpha=0.3, label="80 % of draws")
        axis.plot(times[SEEN:], draws.median(0).values, color=FIT, label="median")
        axis.axvline(SEEN - 0.5, color=GREY, linestyle=":", label="the forecast begins")
        axis.set(xlabel="time", ylabel="y", title="A forecast through a fitted flow")
        axis.legend()
        figure.savefig(run.out / "forecast.png")
        plt.close(figure)
    print(f"picture: {run.out / 'forecast.png'}")


if __name__ == "__main__":
    main()
