"""The suite of Blessing et al. 2024, "Beyond ELBOs" (arXiv:2406.07423), with their metrics.

    python benchmarks/beyond_elbos.py                       # all targets, one seed
    python benchmarks/beyond_elbos.py --targets funnel gmm40 --seeds 3
    python benchmarks/beyond_elbos.py --page                # the page from the kept results
    python benchmarks/beyond_elbos.py --smoke               # one target, few steps; out/benchmarks

Every fit is ``NFVI(target).run()`` with nothing but a seed. Results are kept in
docs/benchmarks/beyond_elbos.json as they come; a run that was cut off goes on.
"""

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.beyond_elbos_targets import TARGETS
from pyro_nfvi import NFVI, Target

#: Draws of fit and target for EUBO, forward ESS and moments; and for the transport distance, whose
#: exact assignment grows as their cube.
DRAWS, PAIRS = 10_000, 1000
#: A fit is wrong with a mean off by more than this, in true sds, or an sd by more, relatively.
WRONG = (0.3, 0.3)


def transport(one, other):
    """Squared 2-Wasserstein distance of two samples of one size, by the best assignment.

    It is what Sinkhorn's distance tends to as its regularisation goes to 0.
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(one, other).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean())


def measured(target, fit, seed):
    """All metrics of one fit."""
    with torch.no_grad():
        log_w = fit.draws.log_w
        density = fit.guide.density()
        value, error = fit.log_evidence()
        row = {
            "elbo": fit.elbo,
            "log_z": value,
            "log_z_se": error,
            "reverse_ess": fit.ess / len(log_w),
            "khat": fit.khat,
            "verdict": str(fit.verdict),
            "reasons": list(fit.verdict.reasons),
            "flow": fit.training.settings.flow,
        }
        if target.log_z is not None:
            row["log_z_error"] = value - target.log_z
        ours = torch.cat([x.reshape(DRAWS, -1) for x in fit.sample(DRAWS, seed=seed).values()], -1)
        if target.draw is not None:
            noise = torch.Generator().manual_seed(1000 + seed)
            exact = target.draw(DRAWS, noise)
            inverse = target.log_density(exact) - density.log_prob(exact.to(fit.draws.z)).double()
            row["eubo"] = float(inverse.mean())
            # Forward ESS: 1 / E_p[w], w the normalised weights; log Z by its true value.
            row["forward_ess"] = float((-torch.logsumexp(inverse - target.log_z, 0)).exp() * DRAWS)
            row["transport"] = transport(ours[:PAIRS], exact[:PAIRS])
            row["transport_floor"] = transport(exact[PAIRS : 2 * PAIRS], exact[:PAIRS])
        if target.mode is not None:
            share = target.mode(ours).mean(0)
            entropy = -float(torch.special.xlogy(share, share).sum())
            row["mode_coverage"] = entropy / math.log(len(share))
            row["mode_error"] = float((share - target.weights).abs().max())
        if target.moments is not None:
            mean, sd = target.moments()
            found = target.values(ours)
            row["mean_error"] = float(((found.mean(0) - mean) / sd).abs().max())
            row["sd_error"] = float((found.std(0) / sd - 1).abs().max())
    return row


def one(name, seed, steps):
    target = TARGETS[name]()
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = Target(target.log_density, target.dim, dtype=torch.float64)
            fit = NFVI(model, seed=seed, max_steps=steps, progress=False).run()
        except Exception as error:  # a fit that fails is a result too
            return {"error": f"{type(error).__name__}: {error}"}
    cpu = time.process_time() - begin
    return {**measured(target, fit, seed), "cpu": cpu}


def wrong(row):
    return row.get("mean_error", 0) > WRONG[0] or row.get("sd_error", 0) > WRONG[1]


HEAD = (
    ("ELBO", "elbo", "{:.2f}"),
    ("log Z", "log_z", "{:.2f}"),
    ("its error", "log_z_error", "{:+.3f}"),
    ("EUBO", "eubo", "{:.2f}"),
    ("reverse ESS", "reverse_ess", "{:.2f}"),
    ("forward ESS", "forward_ess", "{:.2f}"),
    ("transport", "transport", "{:.2f}"),
    ("of exact draws", "transport_floor", "{:.2f}"),
    ("mode coverage", "mode_coverage", "{:.3f}"),
    ("worst mean", "mean_error", "{:.2f}"),
    ("worst sd", "sd_error", "{:.2f}"),
    ("verdict", "verdict", "{}"),
    ("CPU s", "cpu", "{:.0f}"),
)


def page(results):
    lines, notes = [], []
    for key, row in results["rows"].items():
        name, seed = key.split("|")
        if "error" in row:
            notes.append(f"{name}, seed {seed}: {row['error']}")
            continue
        cells = [form.format(row[field]) if field in row else "" for _, field, form in HEAD]
        lines.append([f"{name} ({TARGETS[name]().dim})", seed, *cells])
        if row["verdict"] == "good" and wrong(row):
            notes.append(f"**{name}, seed {seed}, is called good and is wrong.**")
    missing = [name for name in TARGETS if f"{name}|0" not in results["rows"]]
    if missing:
        notes.append(f"Not run yet, for want of time: {', '.join(missing)}.")
    head = table(["target (dimension)", "seed", *(title for title, _, _ in HEAD)], lines)
    return f"""
Targets of [Blessing et al. 2024](https://arxiv.org/abs/2406.07423), each fitted by
`NFVI(target).run()` with nothing but a seed. All numbers are in nats but distances and shares.

{head}

{chr(10).join(f"- {note}" for note in notes)}

- *log Z* is the estimate by importance sampling, *its error* the difference from the true one: 0
  for normalised densities, a sum on a grid for Many Well and, with the paths integrated out, for
  Brownian motion. The logistic and the seeds model have none that is known.
- *EUBO* is the mean of log weights under exact draws, an upper bound on log Z; *forward ESS* is
  1 over the mean of normalised weights there. *Reverse ESS* is the share of the fit's own draws.
- *Transport* is the squared 2-Wasserstein distance of {PAIRS} draws of the fit to {PAIRS} exact
  ones by the best assignment, what Sinkhorn's distance tends to without regularisation; beside it
  that of two exact samples.
- *Mode coverage* is the entropy of the shares of the modes, 1 where all have the same.
- The worst mean is off by so many true sds, the worst sd by that share.
- The places of the Gaussians and of Student's t are drawn by torch, seed 0, so they are not those
  of the paper; its kinds of targets are: funnel with an sd of 3 in 10-D, 40 Gaussians in
  [-40, 40]^2, ten Student t with two degrees of freedom in [-10, 10]^2.
- Left out: credit, ionosphere, sonar and the pines of the log-Gaussian Cox process, whose data no
  package at hand ships; the two image flows. Numbers of the paper's own tables are not shown, since
  they could not be looked up.

{in_words(results["environment"])} Written by `python benchmarks/beyond_elbos.py`.
"""


def save(results, folder):
    return write("beyond_elbos", "Beyond ELBOs", results, page(results), folder)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--smoke", action="store_true", help="one target, few steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder, steps = DOCS, None
    if args.smoke:
        folder, steps = ROOT / "out" / "benchmarks", 100
        args.targets, args.seeds = ["student_t"], 1
    kept = folder / "beyond_elbos.json"
    fresh = args.fresh or args.smoke or not kept.exists()
    results = {"rows": {}} if fresh else json.loads(kept.read_text())
    if args.page:
        print(f"wrote {save(results, folder)}")
        return
    results["environment"] = environment()
    for name in args.targets:
        for seed in range(args.seeds):
            key = f"{name}|{seed}"
            if key in results["rows"]:
                continue
            row = one(name, seed, steps)
            results["rows"][key] = row
            print(f"{key}: {row.get('error') or {k: v for k, v in row.items() if k != 'reasons'}}")
            save(results, folder)
    print(f"wrote {save(results, folder)}")


if __name__ == "__main__":
    main()
