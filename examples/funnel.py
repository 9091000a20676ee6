"""Neal's funnel in ten dimensions: nine coordinates whose scale is the exponential of the tenth.

The number: the log evidence is 0, since the density is normalised; a guide that misses the neck
reports less. The truth is drawn beside the fit.
"""

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell

from pyro_nfvi import NFVI
from pyro_nfvi.plots import plot_pair


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    scale = torch.exp(v / 2).unsqueeze(-1)
    x = pyro.sample("x", dist.Normal(torch.zeros(9), scale).to_event(1))
    pyro.factor("nothing_observed", torch.zeros_like(x[..., 0]))


def main():
    run = options(__doc__, "funnel")
    steps = 30 if run.smoke else 2500
    fit = NFVI(funnel, guide="iaf*4", max_steps=steps, seed=0, progress=not run.smoke).run()
    draws = fit.sample(4000, seed=1)
    tell(fit)
    evidence, error = fit.log_evidence()
    print(f"ELBO {fit.elbo:.3f} ± {fit.elbo_se:.3f}, log evidence {evidence:.3f} ± {error:.3f}")
    check("ELBO (exact: 0)", fit.elbo, -0.25, 0.02, smoke=run.smoke)
    check("sd of v (exact: 3)", float(draws["v"].std()), 2.4, 3.2, smoke=run.smoke)

    torch.manual_seed(0)
    v = 3 * torch.randn(4000)
    exact = {"v": v, "x": torch.exp(v / 2).unsqueeze(-1) * torch.randn(4000, 9)}
    figure = plot_pair(
        draws, "x[0]", "v", exact, labels=("flow", "exact"), title="Neal's funnel, D = 10"
    )
    figure.savefig(run.out / "funnel.png")
    print(f"picture: {run.out / 'funnel.png'}")


if __name__ == "__main__":
    main()
