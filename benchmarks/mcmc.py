"""Cost and quality of exact chains through a fit, against Pyro's NUTS in the same space.

    python benchmarks/mcmc.py           # writes docs/benchmarks/mcmc.{md,json}
    python benchmarks/mcmc.py --smoke   # one posterior, short runs, prints only

Processor time, child processes counted. The two samplers take turns. NUTS through the fit runs few
iterations, since only its cost is asked for; its compiled parts are those of the chains.
"""

import argparse
import resource
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import torch

import pyro_nfvi as nfvi
from benchmarks._report import environment, in_words, table, write
from benchmarks.posteriordb import load, score

POSTERIORS = (
    "arK-arK", "dogs-dogs", "eight_schools-eight_schools_noncentered", "garch-garch11",
    "kidiq-kidscore_interaction", "nes2000-nes", "sblrc-blr",
)  # fmt: skip
CHAINS, WARMUP, DRAWS = 64, 200, 500
NUTS = 20
REPEATS = 3


def cpu():
    usage = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def timed(function):
    begin = cpu()
    found = function()
    return found, cpu() - begin


def measure(name, guide, draws, repeats):
    posterior = load(name)
    options = {"seed": 0, "progress": False}
    fit, fit_cpu = timed(lambda: nfvi.NFVI(posterior.model, guide, **options).run(**posterior.data))
    size = {"num_chains": CHAINS, "warmup_steps": WARMUP}
    fit.mcmc(num_samples=4, num_chains=CHAINS, warmup_steps=2, **options)  # compiles
    ours, nuts, half = [], [], NUTS // 2
    for _ in range(repeats):
        _, took = timed(
            lambda: fit.to_nuts(num_samples=half, warmup_steps=half, num_chains=1, **options)
        )
        nuts.append(took / NUTS)
        run, took = timed(lambda: fit.mcmc(num_samples=draws, **size, **options))
        ours.append(took)
    sites = run.get_samples(deterministic=True)
    thinned = {site: sites[site][:: max(1, CHAINS * draws // 10_000)] for site in posterior.sites}
    found = score({site: value.numpy() for site, value in thinned.items()}, posterior.reference)
    return {
        "posterior": name,
        "dim": fit.latent.dim,
        "fit_cpu": fit_cpu,
        "nuts_seconds": nuts,
        "mcmc_seconds": [took / CHAINS / (WARMUP + draws) for took in ours],
        "mcmc_cpu": ours,
        "ess": min(run.ess, run.ess_tail),
        "gradients": run.sampling.gradients,
        "rhat": run.rhat,
        "nested_rhat": run.nested_rhat,
        "verdict": str(run.verdict),
        "mean_error": found.max_mean_error,
        "sd_error": found.max_sd_error,
        "w1_over_floor": found.sliced_w1 / posterior.reference.floor["sliced_w1"],
    }


def page(rows):
    lines, factors = [], []
    for row in rows:
        nuts, ours = (statistics.median(row[key]) for key in ("nuts_seconds", "mcmc_seconds"))
        took = statistics.median(row["mcmc_cpu"])
        factors.append(nuts / ours)
        lines.append(
            [
                row["posterior"].split("-")[-1], row["dim"], f"{1e3 * nuts:.1f}",
                f"{1e6 * ours:.1f}", f"**{nuts / ours:,.0f}**", f"{row['ess']:,.0f}",
                f"{row['ess'] / took:,.0f}", f"{row['ess'] / (took + row['fit_cpu']):,.0f}",
                f"{row['rhat']:.3f}", f"{row['mean_error']:.3f}", f"{row['w1_over_floor']:.2f}",
            ]
        )  # fmt: skip
    header = [
        "Posterior", "D", "NUTS, ms", "chains, µs", "times cheaper", "effective draws", "a second",
        "with the fit", "R-hat", "error of a mean, sds", "distance over its floor",
    ]  # fmt: skip
    return f"""
`python benchmarks/mcmc.py`: {in_words(environment())}

`fit.mcmc` with {CHAINS} chains, {WARMUP} warm-up steps and {DRAWS} draws, after
`NFVI(model).run(data)`, with the code compiled already; `fit.to_nuts` in turn with it. Processor
seconds of one iteration of one chain (medians of {REPEATS}), and effective draws (the smaller of
bulk and tail, of the worst number) by second of the chains alone and with the fit before them. The
distance is the sliced Wasserstein distance from reference draws, over what 2,000 exact draws have.

{table(header, lines)}

One iteration of a chain is {min(factors):,.0f} to {max(factors):,.0f} times cheaper, in the median
{statistics.median(factors):,.0f} times.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="one posterior, prints only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = []
    for name in POSTERIORS[:1] if given.smoke else POSTERIORS:
        guide, draws, repeats = ("gaussian", 20, 1) if given.smoke else ("auto", DRAWS, REPEATS)
        rows.append(measure(name, guide, draws, repeats))
        print(rows[-1], flush=True)
    if given.smoke:
        print(page(rows))
        return
    results = {"environment": environment(), "rows": rows}
    print("Wrote", write("mcmc", "Exact chains through a fit", results, page(rows)))


if __name__ == "__main__":
    main()
