"""What the verdict's words are worth: hundreds of fits, most of them poor on purpose.

    python benchmarks/calibration.py               # 16 posteriors x 12 recipes x 2 seeds
    python benchmarks/calibration.py --workers 2   # on two cores
    python benchmarks/calibration.py --generated 60 --seconds 600   # and some generated ones
    python benchmarks/calibration.py --page        # the page from the kept results
    python benchmarks/calibration.py --smoke       # seconds, writes to out/benchmarks

The verdict's limits were set by hand, after default fits of the public posteriors; no fit of this
script was used. Two halves of them show how much depends on which they are. Generated posteriors
(``generated_posteriors.py``, 360 with exact moments) are split into calibration and test by a hash
of their names. Bounds count posteriors, not fits, which are alike. Results are kept in
docs/benchmarks/calibration.json as they come; a run that was cut off goes on. ``--fresh`` starts
over.
"""

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks import generated_posteriors as generated
from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.posteriordb import MODELS, load, score
from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi.diagnostics._verdict import VERDICTS

#: A fit is right with all errors below these, and wrong with one above those: worst error of a
#: mean, in reference sds, and of an sd, relative to the reference's.
RIGHT, WRONG = (0.1, 0.15), (0.3, 0.3)
#: Draws that a fit is scored with: their noise should be small beside RIGHT.
DRAWS = 8000


def mean_field(model):
    return AutoFlow(model, None, outer="diagonal")


#: What each fit is given. Few of these are how one would fit.
RECIPES = {
    "default": ("auto", {}),
    "default, 200 steps": ("auto", {"max_steps": 200}),
    "Gaussian": ("affine", {"max_steps": 500}),
    "mean field": (mean_field, {"max_steps": 1000, "precondition": False}),
    "iaf*2, 100 steps, cold": ("iaf*2", {"max_steps": 100, "precondition": False}),
    "iaf*2, 400 steps, cold": ("iaf*2", {"max_steps": 400, "precondition": False}),
    "iaf*2, 2000 steps, cold": ("iaf*2", {"max_steps": 2000, "precondition": False}),
    "iaf*2, rate 0.1": ("iaf*2", {"max_steps": 300, "optim": 0.1}),
    "planar*8, 300 steps": ("planar*8", {"max_steps": 300}),
    "radial*4, 300 steps, cold": ("radial*4", {"max_steps": 300, "precondition": False}),
    "realnvp*4, 300 steps": ("realnvp*4", {"max_steps": 300}),
    "nsf, 4 particles": ("nsf", {"max_steps": 300, "num_particles": 4}),
}
#: What generated posteriors are given: as one would fit, and three that are poor on purpose.
SHORT = ("default", "Gaussian", "iaf*2, 100 steps, cold", "planar*8, 300 steps")
#: One half of the public posteriors.
HALF = tuple(list(MODELS)[::2])


def one(name, recipe, seed, steps):
    """Fit once; return its verdict and its errors."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    public = name in MODELS
    posterior = load(name) if public else generated.load(name)
    data = posterior.data if public else {}
    guide, options = RECIPES[recipe]
    if steps is not None:  # a short run
        options = {**options, "max_steps": min(steps, options.get("max_steps", steps))}
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = NFVI(posterior.model, guide, seed=seed, progress=False, **options).run(**data)
        except Exception as error:  # refusing to give a fit is honest too
            return {"error": f"{type(error).__name__}: {error}"}, None
        draws = fit.sample(DRAWS, seed=seed, deterministic=True)
    if public:
        arrays = {site: np.asarray(draws[site]) for site in posterior.sites}
        found = score(arrays, posterior.reference)
        mean_error, sd_error = found.max_mean_error, found.max_sd_error
    else:
        mean_error, sd_error = generated.errors(draws, posterior)
    row = {
        "verdict": str(fit.verdict),
        "reasons": list(fit.verdict.reasons),
        "khat": fit.khat,
        "ess": fit.ess,
        "mean_error": mean_error,
        "sd_error": sd_error,
        "cpu": time.process_time() - begin,
    }
    return row, (fit.draws.z.numpy(), fit.draws.log_w.numpy())


def outcome(row):
    if row["mean_error"] > WRONG[0] or row["sd_error"] > WRONG[1]:
        return "wrong"
    if row["mean_error"] < RIGHT[0] and row["sd_error"] < RIGHT[1]:
        return "right"
    return "between"


def upper(count, total, level=0.95):
    """Upper bound of a share of which ``count`` in ``total`` were seen (Clopper and Pearson)."""
    from scipy.stats import beta

    return 1.0 if count >= total else float(beta.ppf(level, count + 1, total - count))


def clustered(rows):
    """Bound the share of posteriors of which a fit is called good and wrong.

    Fits of one posterior go wrong together, so that posteriors are counted: a cluster is wrong with
    one such fit among those of it that are called good.
    """
    clusters = {}
    for key, row in rows.items():
        if row["verdict"] == "good":
            name = key.split("|")[0]
            clusters[name] = clusters.get(name, False) or outcome(row) == "wrong"
    wrong = sum(clusters.values())
    if not clusters:
        return "No fit was called good."
    most = 100 * upper(wrong, len(clusters))
    return (
        f"Of {len(clusters)} posteriors with a fit that is called good, {wrong} "
        f"{'has' if wrong == 1 else 'have'} one that is wrong: of such posteriors at most "
        f"{most:.1f} % do, with 95 % confidence (Clopper and Pearson, over posteriors)."
    )


def confusion(rows):
    lines = []
    for word in VERDICTS:
        mine = [row for row in rows if row["verdict"] == word]
        counts = [sum(outcome(row) == which for row in mine) for which in OUTCOMES]
        lines.append([word, *counts, len(mine)])
    return table(["verdict", *OUTCOMES, "fits"], lines)


OUTCOMES = ("right", "between", "wrong")


def in_numbers(rows):
    good = [row for row in rows if row["verdict"] == "good"]
    wrong = sum(outcome(row) == "wrong" for row in good)
    right = [row for row in rows if outcome(row) == "right"]
    called = sum(row["verdict"] == "good" for row in right)
    if not good or not right:
        return "Too few fits to say anything."
    share, most = 100 * wrong / len(good), 100 * upper(wrong, len(good))
    return (
        f"Of {len(good)} fits called good {wrong} {'is' if wrong == 1 else 'are'} wrong: "
        f"{share:.1f} %, at most {most:.1f} % with 95 % confidence, if fits were independent. "
        f"Of {len(right)} right fits {100 * called / len(right):.0f} % are called good."
    )


def page(results, env):
    every = {key: row for key, row in results["rows"].items() if "error" not in row}
    rows = {key: row for key, row in every.items() if key.split("|")[0] in MODELS}
    failed = len(results["rows"]) - len(every)
    half = {
        "One half of the posteriors": [r for k, r in rows.items() if k.split("|")[0] not in HALF],
        "The other half": [r for k, r in rows.items() if k.split("|")[0] in HALF],
        "All": list(rows.values()),
    }
    parts = [
        f"{len(rows)} fits of {len(MODELS)} posteriors with reference draws, "
        f"{len(RECIPES)} recipes, most of them poor on purpose. A fit is *right* with every "
        f"mean within {RIGHT[0]} reference sds and every sd within {100 * RIGHT[1]:.0f} %, and "
        f"*wrong* with a mean off by more than {WRONG[0]} sd or an sd off by more than "
        f"{100 * WRONG[1]:.0f} %. {failed} fits ended in an error and are left out. The limits "
        "were set by hand, after default fits of these posteriors, and no fit below changed them."
    ]
    for title, some in half.items():
        parts += [f"## {title}", in_numbers(some), confusion(some)]
    parts.append(clustered(rows))
    made = {key: row for key, row in every.items() if key not in rows}
    parts += generated_ones(made, results.get("generated_environment", env))
    lines = []
    for recipe in RECIPES:
        mine = [row for key, row in rows.items() if key.split("|")[1] == recipe]
        verdicts = [sum(row["verdict"] == word for row in mine) for word in VERDICTS]
        lines.append([recipe, *(sum(outcome(r) == w for r in mine) for w in OUTCOMES), *verdicts])
    parts += ["## By recipe", table(["recipe", *OUTCOMES, *VERDICTS], lines)]
    astray = [
        [*key.split("|"), f"{row['mean_error']:.2f}", f"{row['sd_error']:.2f}"]
        for key, row in every.items()
        if row["verdict"] == "good" and outcome(row) == "wrong"
    ]
    if astray:
        head = ["posterior", "recipe", "seed", "mean error", "sd error"]
        parts += ["## Called good, and wrong", table(head, astray)]
    parts.append(f"{in_words(env)} Written by `python benchmarks/calibration.py`.")
    return "\n\n".join(parts)


def generated_ones(rows, env):
    """Sections on generated posteriors, by the part that the hash of a name gives it."""
    if not rows:
        return []
    names = {key.split("|")[0] for key in rows}
    found = [
        "## Generated posteriors",
        f"{len(rows)} fits of {len(names)} of {len(generated.NAMES)} posteriors in six families "
        f"({', '.join(generated.FAMILIES)}), whose moments are known by closed form or quadrature. "
        "None of them set a limit. They are split by the parity of a hash of their names, "
        "fixed before the first fit: *calibration* may set limits, and *test* is for the count "
        "alone. The aim is 1,000 fits called good of 300 posteriors; a run goes on from what is "
        "here.",
    ]
    for half in generated.PARTS:
        some = {key: row for key, row in rows.items() if generated.part(key.split("|")[0]) == half}
        if some:
            values = list(some.values())
            found += [f"### {half.capitalize()}", in_numbers(values), clustered(some)]
            found.append(confusion(values))
    return [*found, f"These fits: {in_words(env)}"]


def save(results, folder):
    title = "Calibration of the verdict"
    return write("calibration", title, results, page(results, results["environment"]), folder)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--generated", type=int, default=0, help="generated posteriors, at most")
    parser.add_argument("--seconds", type=float, help="begin no fit after so much processor time")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--draws", type=Path, help="keep each fit's draws and weights here")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--smoke", action="store_true", help="one small model, few steps")
    args = parser.parse_args()
    folder, steps = DOCS, None
    if args.smoke:
        folder, steps = ROOT / "out" / "benchmarks", 100
        args.models, args.recipes, args.seeds = ["dogs-dogs"], ["default", "mean field"], 1
    kept = folder / "calibration.json"
    fresh = args.fresh or args.smoke or not kept.exists()
    results = {"rows": {}} if fresh else json.loads(kept.read_text())
    torch.set_num_threads(1)
    if args.page:
        print(f"wrote {save(results, folder)}")
        return
    # Public and generated posteriors may have been run by different versions.
    kinds = {"environment": not args.generated, "generated_environment": args.generated}
    results |= {kind: environment() for kind, now in kinds.items() if now or kind not in results}
    todo = [
        (name, recipe, seed, steps)
        for recipe in args.recipes
        for seed in range(args.seeds)
        for name in args.models
        if f"{name}|{recipe}|{seed}" not in results["rows"]
    ]
    todo += [
        (name, recipe, 0, steps)
        for name in generated.NAMES[: args.generated]
        for recipe in (SHORT if args.recipes == list(RECIPES) else args.recipes)
        if f"{name}|{recipe}|0" not in results["rows"]
    ]
    spent = 0.0
    # Fits are independent processes' work; a spawned one starts with clean settings.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool:
        jobs = {pool.submit(one, *job): job for job in todo}
        for job in as_completed(jobs):
            if job.cancelled():
                continue
            name, recipe, seed, _ = jobs[job]
            row, arrays = job.result()
            spent += row.get("cpu", 0.0)
            if args.seconds is not None and spent > args.seconds:
                for one_more in jobs:
                    one_more.cancel()
            key = f"{name}|{recipe}|{seed}"
            results["rows"][key] = row
            if args.draws and arrays is not None:
                args.draws.mkdir(parents=True, exist_ok=True)
                file = args.draws / f"{key.replace('|', '--').replace('*', 'x')}.npz"
                np.savez(file, z=arrays[0], log_w=arrays[1])
            brief = row.get("error") or f"{row['verdict']}, {outcome(row)}, {row['cpu']:.1f} CPU s"
            print(f"{len(results['rows'])} {key}: {brief}", flush=True)
            save(results, folder)
    print(f"wrote {save(results, folder)}")


if __name__ == "__main__":
    main()
