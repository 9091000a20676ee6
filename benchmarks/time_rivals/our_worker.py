"""One fit in a process of its own, from the call to draws: ``our_worker.py NAME METHOD SEED INTO``.

``METHOD`` is ``nfvi`` (``NFVI(model).run(data)``, then 2,000 draws), ``mcmc`` (the same fit, then
2,000 draws of ``fit.mcmc``), ``chains`` (the same with 32,000), or ``iaf_pyro:STEPS`` (Pyro's
AutoIAFNormal). Prints a line of JSON with the cost and writes the draws. Imports and data are no
part of the time; compilers that are called are.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, autoguide

from benchmarks.posteriordb import MODELS, load
from benchmarks.time_rivals.costs import Clock, one_core
from benchmarks.time_rivals.larger_models import load_larger
from pyro_nfvi import NFVI
from pyro_nfvi.infer import _run_fit  # noqa: F401  imports are no part of the time

#: Draws in the end, chains of ``mcmc``, and how long they are where effective draws are counted.
DRAWS, CHAINS, LENGTH = 2000, 64, 500


def nfvi(posterior, seed, length=None, steps=None):
    clock = Clock()
    fit = NFVI(posterior.model, seed=seed, max_steps=steps, progress=False).run(**posterior.data)
    about = {}
    if length is not None:
        run = fit.mcmc(num_samples=length, num_chains=CHAINS, seed=seed, progress=False)
        draws = run.get_samples(deterministic=True)
        about = {"chains": str(run.verdict), "sampling": run.sampling.seconds}
    else:
        draws = fit.sample(DRAWS, seed=seed, deterministic=True)
    cost = clock.read()
    return draws, {
        **cost,
        **about,
        "verdict": str(fit.verdict),
        "engine": fit.engine,
        "flow": fit.training.settings.flow,
        "steps": fit.timing.steps,
        "parts": fit.timing.parts,
    }


def iaf(posterior, seed, steps):
    pyro.set_rng_seed(seed)
    clock = Clock()
    guide = autoguide.AutoIAFNormal(posterior.model, num_transforms=2)
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True)
    svi = SVI(posterior.model, guide, optim, elbo)
    with pyro.validation_enabled(False):
        for _ in range(steps):
            svi.step(**posterior.data)
    hidden = pyro.poutine.block(posterior.model, hide_fn=_is_data)
    sites = list(posterior.sites)
    draws = Predictive(hidden, guide=guide, num_samples=DRAWS, return_sites=sites)(**posterior.data)
    return {n: v.reshape(DRAWS, -1).squeeze(-1) for n, v in draws.items()}, clock.read()


def _is_data(site):
    return site.get("is_observed") and not site["infer"].get("_deterministic")


def main():
    one_core()
    name, method, seed, into = sys.argv[1:]
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    posterior = load(name) if name in MODELS else load_larger(name)
    method, _, steps = method.partition(":")
    steps = int(steps) if steps else None
    if method == "iaf_pyro":
        draws, found = iaf(posterior, int(seed), steps)
    else:
        length = {"mcmc": -(-DRAWS // CHAINS), "chains": LENGTH}.get(method)
        draws, found = nfvi(posterior, int(seed), length, steps)
    np.savez(into, **{site: draws[site].detach().numpy() for site in posterior.sites})
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
