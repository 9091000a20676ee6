"""NeuTra: a fitted flow straightens a centred hierarchy, and NUTS samples it exactly.

The numbers: the mean of tau (3.60 by long MCMC runs) and the count of divergent transitions,
with and without the flow.
"""

import pyro
import torch
from _cli import check, options
from eight_schools import SIGMA, Y, fit, model
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import NeuTraReparam

from pyro_nfvi import AutoIAF
from pyro_nfvi.plots import plot_pair


def nuts(target, args, draws, warmup):
    mcmc = MCMC(NUTS(target, max_tree_depth=7), draws, warmup, disable_progbar=True)
    mcmc.run(*args)
    divergent = sum(len(chain) for chain in mcmc.diagnostics()["divergences"].values())
    return mcmc.get_samples(), divergent


def main():
    run = options(__doc__, "neutra_nuts")
    args = torch.tensor(Y), torch.tensor(SIGMA)
    draws, warmup, steps = (5, 5, 10) if run.smoke else (600, 300, 1500)
    pyro.set_rng_seed(0)
    guide = fit(AutoIAF(model), args, steps)

    neutra = NeuTraReparam(guide.requires_grad_(False))
    base, divergent = nuts(poutine.reparam(model, config=lambda _: neutra), args, draws, warmup)
    (shared,) = base.values()
    exact = neutra.transform_sample(shared.unsqueeze(-2))
    exact = {name: value.reshape(draws, -1).squeeze(-1) for name, value in exact.items()}
    plain, plain_divergent = nuts(model, args, draws, warmup)

    print(f"divergent transitions of {draws}: {divergent} with the flow, {plain_divergent} without")
    check("tau by NUTS through the flow", float(exact["tau"].mean()), 2.9, 4.4, smoke=run.smoke)
    figure = plot_pair(
        exact,
        "theta[0]",
        "log tau",
        plain,
        labels=("NUTS through the flow", "NUTS on the centred model"),
        title="Eight schools, centred",
    )
    figure.savefig(run.out / "neutra.png")
    print(f"picture: {run.out / 'neutra.png'}")


if __name__ == "__main__":
    main()
