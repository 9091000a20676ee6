"""The banana: x2 ~ N(0, 4²), x1 ~ N(x2²/4, 1), a curved ridge that no Gaussian follows.

The numbers: the ELBO against the exact log evidence 0, and the mean of x1, which is 4.
"""

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell

from pyro_nfvi import NFVI
from pyro_nfvi.plots import plot_pair


def banana():
    x2 = pyro.sample("x2", dist.Normal(0.0, 4.0))
    x1 = pyro.sample("x1", dist.Normal(x2.square() / 4, 1.0))
    pyro.factor("nothing_observed", torch.zeros_like(x1))


def main():
    run = options(__doc__, "banana")
    steps = 30 if run.smoke else 2500
    optim = 0.03  # two latents stand a higher rate
    fit = NFVI(banana, "iaf*2", optim=optim, max_steps=steps, seed=1, progress=not run.smoke).run()
    draws = fit.sample(4000, seed=1)
    tell(fit)
    check("ELBO (exact: 0)", fit.elbo, -0.6, 0.05, smoke=run.smoke)
    check("mean of x1 (exact: 4)", float(draws["x1"].mean()), 2.8, 4.6, smoke=run.smoke)

    torch.manual_seed(0)
    x2 = 4 * torch.randn(4000)
    exact = {"x2": x2, "x1": x2.square() / 4 + torch.randn(4000)}
    figure = plot_pair(draws, "x2", "x1", exact, labels=("flow", "exact"), title="The banana")
    figure.savefig(run.out / "banana.png")
    print(f"picture: {run.out / 'banana.png'}")


if __name__ == "__main__":
    main()
