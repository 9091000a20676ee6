"""How close fits come to reference draws: sixteen posteriors, one recipe, no tuning per model.

    python benchmarks/accuracy.py                          # NFVI's default, three seeds
    python benchmarks/accuracy.py --who auto mvn iaf_pyro  # with guides of Pyro
    python benchmarks/accuracy.py --smoke                  # seconds, writes to out/benchmarks

Results are kept in docs/benchmarks/accuracy.json as they come; a run that was cut off goes on, and
other rows join those that are there. ``--fresh`` starts over.
"""

import argparse
import json
import statistics
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

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.posteriordb import MODELS, load, score
from pyro_nfvi import NFVI

#: What a guide of Pyro is given: steps, particles, and the rate at both ends.
STEPS, PARTICLES, RATE, LAST_RATE = 2000, 8, 0.01, 0.001
#: When a fit counts as right: worst mean error and worst sd error, in reference sds.
MEAN, SD = 0.1, 0.15
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
OURS = {"auto": "NFVI, default", "iaf*2": "NFVI, iaf*2", "planar*16": "NFVI, planar*16"}


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
    plain = scores_of(posterior, fit.sample(2000, seed=seed))
    row = {
        **plain,
        **cost,
        "khat": fit.khat,
        "verdict": str(fit.verdict),
        "reasons": list(fit.verdict.reasons),
        "elbo": fit.elbo,
        "flow": fit.training.settings["flow"],
        "engine": fit.engine,
        "steps": len(fit.losses),
    }
    if fit.draws.smoothed() is not None:
        row["reweighted"] = scores_of(posterior, fit.resample(2000, seed=seed))
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


def one(name, who, seed, steps):
    posterior = load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if who in PYRO:
                return pyros(posterior, PYRO[who][1], seed, min(steps, STEPS))
            return ours(posterior, who, seed, steps)
        except Exception as error:  # a fit that fails is a result too
            return {"error": f"{type(error).__name__}: {error}"}


def right(row):
    return "error" not in row and row["max_mean_error"] < MEAN and row["max_sd_error"] < SD


def spread(values, digits=2):
    values = sorted(values)
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def page(results, env):
    rows, groups = results["rows"], {}
    for key, row in rows.items():
        name, who, _ = key.split("|")
        groups.setdefault((who, name), []).append(row)
    parts = [
        "Worst error over all parameters of each posterior, in standard deviations of the "
        "reference draws: of the mean, and of the sd relative to the reference's. *W1* is the "
        "sliced Wasserstein distance over that of as many exact draws. A fit is *right* with a "
        f"mean error below {MEAN} and an sd error below {SD}. Medians over the seeds, with the "
        "range."
    ]
    head = ["posterior", "mean error", "sd error", "W1", "k-hat", "verdict", "flow", "CPU s"]
    for who in dict.fromkeys(key.split("|")[1] for key in rows):
        title = OURS.get(who) or PYRO.get(who, (who,))[0]
        lines, all_rows = [], []
        for name in MODELS:
            group = groups.get((who, name))
            if not group:
                continue
            all_rows += group
            fine = [row for row in group if "error" not in row]
            if not fine:
                lines.append([name, *["failed"] * 3, "", "", "", ""])
                continue
            verdicts = [row.get("verdict", "") for row in fine]
            lines.append(
                [
                    name.split("-")[-1],
                    spread([row["max_mean_error"] for row in fine]),
                    spread([row["max_sd_error"] for row in fine]),
                    spread([row["w1_over_floor"] for row in fine], 1),
                    spread([row["khat"] for row in fine]) if "khat" in fine[0] else "",
                    ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts) if v),
                    ", ".join(dict.fromkeys(flow_of(row) for row in fine))
                    if "flow" in fine[0]
                    else "",
                    spread([row["cpu"] for row in fine], 1),
                ]
            )
        parts += [f"## {title}", summary(all_rows), table(head, lines)]
    parts.append(f"{in_words(env)} Written by `python benchmarks/accuracy.py`.")
    return "\n\n".join(parts)


def flow_of(row):
    """The flow's formula, with its bars escaped for a table."""
    return f"`{row['flow']}`".replace("|", "\\|") if row["flow"] else "Gaussian"


def summary(rows):
    fine = [row for row in rows if "error" not in row]
    if not fine:
        return "No fit succeeded."
    count = sum(map(right, rows))
    text = (
        f"{count} of {len(rows)} fits are right; median W1 "
        f"{statistics.median(row['w1_over_floor'] for row in fine):.2f} times the floor; median "
        f"{statistics.median(row['cpu'] for row in fine):.1f} CPU seconds."
    )
    if "verdict" in fine[0]:
        good = [row for row in fine if row["verdict"] == "good"]
        wrong = sum(row["max_mean_error"] > 0.3 or row["max_sd_error"] > 0.3 for row in good)
        text += (
            f" Of the {len(good)} fits called good, {wrong} have a mean off by more than 0.3 sd or "
            f"an sd off by more than 30 %; of the {count} right ones, "
            f"{sum(right(row) for row in good)} are called good."
        )
        mended = [{**row, **row["reweighted"]} for row in fine if "reweighted" in row]
        text += f" Reweighted, {sum(map(right, mended))} of {len(rows)} are right."
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--who", nargs="+", default=["auto"], choices=[*OURS, *PYRO])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--smoke", action="store_true", help="one small model, few steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = DOCS
    if args.smoke:
        folder = ROOT / "out" / "benchmarks"
        args.models, args.seeds, args.steps = ["dogs-dogs"], 1, 300
    kept = folder / "accuracy.json"
    fresh = args.fresh or args.smoke or not kept.exists()
    results = {"rows": {}} if fresh else json.loads(kept.read_text())
    results["environment"] = env = environment()
    for who in args.who:
        for name in args.models:
            for seed in range(args.seeds):
                key = f"{name}|{who}|{seed}"
                if key in results["rows"]:
                    continue
                row = results["rows"][key] = one(name, who, seed, args.steps)
                brief = row.get("error") or (
                    f"mean {row['max_mean_error']:.3f}, sd {row['max_sd_error']:.3f}, "
                    f"W1 {row['w1_over_floor']:.2f}, {row['cpu']:.1f} CPU s, "
                    f"{row.get('verdict', '')} {row.get('flow', '')}"
                )
                print(f"{key}: {brief}", flush=True)
                save(results, env, folder)
    print(f"wrote {save(results, env, folder)}")


def save(results, env, folder):
    title = "Accuracy against reference draws"
    return write("accuracy", title, results, page(results, env), folder)


if __name__ == "__main__":
    main()
