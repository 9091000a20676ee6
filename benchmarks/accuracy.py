"""How close fits come to reference draws: sixteen posteriors, one recipe, no tuning per model.

    python benchmarks/accuracy.py                          # NFVI's default, three seeds
    python benchmarks/accuracy.py --who auto mvn iaf_pyro  # with guides of Pyro
    python benchmarks/accuracy.py --who bnaf_numpyro iaf_numpyro --numpyro PYTHON --seeds 1
    python benchmarks/accuracy.py --page                   # the page from the kept results
    python benchmarks/accuracy.py --smoke                  # seconds, writes to out/benchmarks

Results are kept in docs/benchmarks/accuracy.json as they come; a run that was cut off goes on, and
other rows join those that are there. ``--fresh`` starts over. PYTHON is one that has NumPyro. Times
beside rivals are those of time_to_posterior.py, where sides take turns.
"""

import argparse
import json
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.distributions.transforms import iterated, planar
from pyro.infer import SVI, Trace_ELBO, autoguide

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._accuracy_page import page
from benchmarks._report import DOCS, ROOT, environment, write
from benchmarks.accuracy_rivals import process
from benchmarks.posteriordb import MODELS, load, score
from pyro_nfvi import NFVI

#: What a rival's guide is given: steps, particles, and the rate at both ends.
STEPS, PARTICLES, RATE, LAST_RATE = 2000, 8, 0.01, 0.001
PYRO = {
    "diagonal": ("Pyro AutoDiagonalNormal", autoguide.AutoDiagonalNormal),
    "mvn": ("Pyro AutoMultivariateNormal", autoguide.AutoMultivariateNormal),
    "lowrank": ("Pyro AutoLowRankMultivariateNormal", autoguide.AutoLowRankMultivariateNormal),
    "iaf_pyro": (
        "Pyro AutoIAFNormal x2",
        lambda model: autoguide.AutoIAFNormal(model, num_transforms=2),
    ),
    "planar_pyro": (
        "Pyro AutoNormalizingFlow, planar x16",
        lambda model: autoguide.AutoNormalizingFlow(model, partial(iterated, 16, planar)),
    ),
}
NUMPYRO = {
    "bnaf_numpyro": "NumPyro AutoBNAFNormal",
    "iaf_numpyro": "NumPyro AutoIAFNormal",
}
OURS = {"auto": "NFVI, default", "iaf*2": "NFVI, iaf*2", "planar*16": "NFVI, planar*16"}
TITLES = {**OURS, **{who: title for who, (title, _) in PYRO.items()}, **NUMPYRO}


def scores_of(posterior, draws):
    arrays = {site: np.asarray(draws[site].detach()) for site in posterior.sites}
    found = score(arrays, posterior.reference).summary()
    floor = posterior.reference.floor["sliced_w1"]
    return {**found, "w1_over_floor": found["sliced_w1"] / floor}


def ours(posterior, guide, seed, steps):
    begin, cpu = time.perf_counter(), time.process_time()
    fit = NFVI(posterior.model, guide, seed=seed, max_steps=steps, progress=False).run(
        **posterior.data
    )
    cost = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    plain = scores_of(posterior, fit.sample(2000, seed=seed, deterministic=True))
    row = {
        **plain,
        **cost,
        "khat": fit.khat,
        "verdict": str(fit.verdict),
        "reasons": list(fit.verdict.reasons),
        "elbo": fit.elbo,
        "flow": fit.training.settings.flow,
        "engine": fit.engine,
        "steps": len(fit.losses),
    }
    if fit.draws.smoothed() is not None:
        row["reweighted"] = scores_of(posterior, fit.resample(2000, seed=seed, deterministic=True))
    return row


def is_data(site):
    # Deterministic sites are observed ones to Pyro, and parameters of a posterior may be such.
    return site.get("is_observed") and not site["infer"].get("_deterministic")


def pyros(posterior, make, seed, steps):
    begin, cpu = time.perf_counter(), time.process_time()
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = make(posterior.model)
        decay = (LAST_RATE / RATE) ** (1 / steps)
        optim = pyro.optim.ClippedAdam({"lr": RATE, "lrd": decay})
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True)
        svi = SVI(posterior.model, guide, optim, elbo)
        with pyro.validation_enabled(False):
            for _ in range(steps):
                svi.step(**posterior.data)
        cost = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
        sites = [
            pyro.infer.Predictive(
                pyro.poutine.block(posterior.model, hide_fn=is_data),
                guide=guide,
                num_samples=2000,
                return_sites=posterior.sites,
            )(**posterior.data)
        ]
    draws = {name: value.reshape(2000, -1).squeeze(-1) for name, value in sites[0].items()}
    return {**scores_of(posterior, draws), **cost}


def numpyros(posterior, who, seed, steps, python):
    rates = {"rate": RATE, "last_rate": LAST_RATE}
    settings = {"seed": seed, "steps": steps, "particles": PARTICLES, **rates}
    return process.fit(python, posterior, who.split("_")[0], scores_of, **settings)


def one(name, who, seed, steps, python=None):
    posterior = load(name)
    most = STEPS if steps is None else min(steps, STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if who in PYRO:
                return pyros(posterior, PYRO[who][1], seed, most)
            if who in NUMPYRO:
                return numpyros(posterior, who, seed, most, python)
            return ours(posterior, who, seed, steps)
        except process.NoNumPyroError:
            raise
        except Exception as error:  # a fit that fails is a result too
            return {"error": f"{type(error).__name__}: {error}"}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--who", nargs="+", default=["auto"], choices=list(TITLES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="most steps, instead of the default")
    parser.add_argument("--numpyro", metavar="PYTHON", help="a Python that has NumPyro")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--smoke", action="store_true", help="one small model, few steps")
    args = parser.parse_args()
    if not args.numpyro and not args.page and set(args.who) & set(NUMPYRO):
        parser.error("rivals in NumPyro need --numpyro PYTHON, a Python that has it")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = DOCS
    if args.smoke:
        folder = ROOT / "out" / "benchmarks"
        args.models, args.seeds, args.steps = ["dogs-dogs"], 1, 300
    kept = folder / "accuracy.json"
    fresh = args.fresh or args.smoke or not kept.exists()
    results = {"rows": {}} if fresh else json.loads(kept.read_text())
    if args.page:
        print(f"wrote {save(results, folder)}")
        return
    results["environment"] = environment()
    for who in args.who:
        for name in args.models:
            for seed in range(args.seeds):
                key = f"{name}|{who}|{seed}"
                if key in results["rows"]:
                    continue
                row = one(name, who, seed, args.steps, args.numpyro)
                results["rows"][key] = row
                brief = row.get("error") or (
                    f"mean {row['max_mean_error']:.3f}, sd {row['max_sd_error']:.3f}, "
                    f"W1 {row['w1_over_floor']:.2f}, {row['cpu']:.1f} CPU s, "
                    f"{row.get('verdict', '')} {row.get('flow', '')}"
                )
                print(f"{key}: {brief}", flush=True)
                save(results, folder)
    print(f"wrote {save(results, folder)}")


def save(results, folder):
    title = "Accuracy against reference draws"
    return write("accuracy", title, results, page(results, TITLES), folder)


if __name__ == "__main__":
    main()
