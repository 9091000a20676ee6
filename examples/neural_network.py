"""A Bayesian neural network in one dimension: sure where data are, unsure between and beyond.

Sixteen weights and a noise. Many settings of the weights are the same function: five units can be
exchanged and flipped, which makes 3840 copies of every mode. So the weights are no target to
compare, the function is, and one copy is enough for it: ``explore="off"`` looks for no others. The
verdict, which is about the weights, says that there are. The reference: NUTS on the weights, and
its band of functions.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell
from _figure import FIT, GREY, INK, STYLE, WIDTH
from pyro.infer import MCMC, NUTS

from pyro_nfvi import NFVI

UNITS = 5
PLACES = torch.linspace(-3.2, 3.2, 120, dtype=torch.float64)


def make_data(n=40):
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([-2.2 + 0.5 * torch.randn(n // 2, generator=generator),
                   1.4 + 0.5 * torch.randn(n - n // 2, generator=generator)])  # fmt: skip
    return x, torch.sin(1.5 * x) + 0.15 * torch.randn(n, generator=generator)


def network(x, inner, shift, outer, bias):
    """Functions (..., places) of weights (..., units)."""
    hidden = torch.tanh(inner[..., None, :] * x[:, None] + shift[..., None, :])
    return (hidden * outer[..., None, :]).sum(-1) / UNITS**0.5 + bias[..., None]


def model(x, y):
    zeros = torch.zeros(UNITS)
    inner = pyro.sample("inner", dist.Normal(zeros, 1.5).to_event(1))
    shift = pyro.sample("shift", dist.Normal(zeros, 1.5).to_event(1))
    outer = pyro.sample("outer", dist.Normal(zeros, 1.5).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.5, 0.5))
    mean = network(x, inner, shift, outer, bias)
    pyro.sample("y", dist.Normal(mean, noise[..., None]).to_event(1), obs=y)


def functions(draws):
    return network(PLACES, *(draws[name] for name in ("inner", "shift", "outer", "bias")))


def picture(fitted, exact, x, y, path):
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(WIDTH, 5.4), layout="constrained", sharex=True, sharey=True
        )
        for axes, values, colour, label in (
            (above, fitted, FIT, "fit"),
            (below, exact, GREY, "NUTS"),
        ):
            low, middle, high = values.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
            axes.fill_between(PLACES, low, high, color=colour, alpha=0.22, lw=0, label="90 %")
            axes.plot(
                PLACES, values[:: max(1, len(values) // 12)][:12].T, color=colour, lw=0.5, alpha=0.6
            )
            axes.plot(PLACES, middle, color=colour, lw=1.8, label="median")
            axes.plot(x, y, "o", color=INK, ms=2.5)
            axes.set_title(label, loc="left")
            axes.set_ylabel("y")
        above.legend(loc="upper right")
        above.set_ylim(-3, 3)
        below.set_xlabel("x")
        figure.suptitle("Bayesian neural network: functions", x=0.01, ha="left")
        figure.savefig(path)


def main():
    run = options(__doc__, "neural_network")
    x, y = make_data()
    steps = {"max_steps": 30} if run.smoke else {}
    fit = NFVI(model, seed=0, explore="off", progress=not run.smoke, **steps).run(x, y)
    tell(fit)
    fitted = functions(fit.sample(4000, seed=1))

    pyro.set_rng_seed(0)
    count, warmup = (5, 5) if run.smoke else (250, 150)
    mcmc = MCMC(NUTS(model, max_tree_depth=5), count, warmup, disable_progbar=run.smoke)
    mcmc.run(x, y)
    exact = functions(mcmc.get_samples())

    print(f"{'x':>6}{'fit mean, sd':>18}{'NUTS mean, sd':>18}")
    for i in range(5, len(PLACES), 18):
        numbers = [f(each[:, i]) for each in (fitted, exact) for f in (torch.mean, torch.std)]
        print(f"{PLACES[i]:>6.2f}" + "".join(f"{number:>9.3f}" for number in numbers))
    sd = exact.std(0)
    near = ((PLACES[:, None] - x).abs() < 0.15).any(1)
    error = (fitted.mean(0) - exact.mean(0)).abs() / sd
    ratio = fitted.std(0) / sd
    check("worst error of a mean where data are, in sds", float(error[near].max()), 0.0, 0.5,
          smoke=run.smoke)  # fmt: skip
    check(
        "mean ratio of sds where data are", float(ratio[near].mean()), 0.75, 1.25, smoke=run.smoke
    )
    check("mean ratio of sds elsewhere", float(ratio[~near].mean()), 0.4, 1.3, smoke=run.smoke)
    picture(fitted, exact, x, y, run.out / "neural_network.png")
    print(f"picture: {run.out / 'neural_network.png'}")


if __name__ == "__main__":
    main()
