"""Time to a posterior: from the call to 2,000 draws, beside NumPyro, nutpie and Pyro's own guide.

    python benchmarks/time_to_posterior.py --numpyro PYTHON             # the sixteen posteriors
    python benchmarks/time_to_posterior.py --rivals nuts_numpyro --models dogs-dogs --numpyro PYTHON
    python benchmarks/time_to_posterior.py --pymc PYTHON --rivals nutpie   # models of PyMC
    python benchmarks/time_to_posterior.py --page       # the page from the kept results
    python benchmarks/time_to_posterior.py --smoke      # under a minute, writes to out/benchmarks

Sides take turns, each in a process of its own, of one thread and in double precision. Imports and
reading of data are no part of the time; tracing, compiling (child processes counted) and the draws
are. ``cold`` is a first run with an empty cache, ``warm`` a later process that finds what the
first one compiled. Rivals: ``nuts_numpyro``, four chains of 1,000 + 1,000; ``nuts_enough``, one
chain of as many draws as reach the error of our fit; ``iaf_numpyro`` and ``iaf_pyro``, as many
steps as they take to the best error; ``nutpie``. PYTHON is one that has NumPyro, or PyMC and
nutpie. Results are kept in docs/benchmarks/time_to_posterior.json as they come; a run that was cut
off goes on. NFVI_BENCHMARK_CORE=1 holds every process on that core. The page sets sides beside each
other that took turns on a posterior, and no others: ask for all of them in one call.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.accuracy_rivals import process
from benchmarks.posteriordb import MODELS, load, score
from benchmarks.posteriordb.score import compare
from benchmarks.time_rivals.larger_models import LARGER, Long, load_larger
from pyro_nfvi.diagnostics._convergence import bulk_ess, tail_ess

HERE = Path(__file__).resolve().parent
OURS = {
    "nfvi_cold": "`NFVI().run`, cold",
    "nfvi_warm": "`NFVI().run`, warm",
    "mcmc_cold": "`fit.mcmc`, cold",
    "mcmc_warm": "`fit.mcmc`, warm",
    "chains_cold": "`fit.mcmc`, 64 x 500, cold",
    "chains_warm": "`fit.mcmc`, 64 x 500, warm",
}
NUMPYRO = {
    "nuts_numpyro": "NumPyro NUTS, 4 x (1,000 + 1,000)",
    "nuts_enough": "NumPyro NUTS, as many as reach our error",
    "iaf_numpyro": "NumPyro AutoIAFNormal",
}
OTHERS = {"iaf_pyro": "Pyro AutoIAFNormal", "nutpie": "nutpie, 4 x (1,000 + 1,000)"}
TITLES = {**OURS, **NUMPYRO, **OTHERS}
#: Chains of NUTS, and their warm-up and draws.
CHAINS, LENGTH = 4, 1000
#: Sides whose effective draws are counted, with the chains that their draws are of.
COUNTED = {"chains_cold": 64, "chains_warm": 64, "nuts_numpyro": CHAINS, "nutpie": CHAINS}
#: Those of the sixteen that are not written in PyMC here (time_rivals/pymc_worker.py).
NOT_IN_PYMC = frozenset(
    name
    for name in MODELS
    if name.split("-")[1]
    in ("garch11", "gp_pois_regr", "hmm_example", "low_dim_gauss_mix", "lotka_volterra")
)
#: Steps of a guide, in the order in which they are tried.
GUIDE_STEPS = (2000, 8000, 32_000)
DRAWS = 2000
#: Half a floor of the sliced W1: what two samples of exact draws may differ by.
HALF = 0.5


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    names = [*MODELS, *LARGER]
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=names)
    parser.add_argument("--rivals", nargs="+", default=["nuts_numpyro"], choices=list(TITLES))
    parser.add_argument("--ours", nargs="*", default=["nfvi_cold", "nfvi_warm"], choices=list(OURS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--numpyro", metavar="PYTHON", help="a Python that has NumPyro")
    parser.add_argument("--pymc", metavar="PYTHON", help="a Python that has PyMC and nutpie")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--smoke", action="store_true", help="one small model, few steps")
    args = parser.parse_args()
    wanted = [] if args.page or args.smoke else args.rivals
    if set(wanted) & set(NUMPYRO) and not args.numpyro:
        parser.error("rivals in NumPyro need --numpyro PYTHON, a Python that has it")
    if "nutpie" in wanted and not args.pymc:
        parser.error("nutpie needs --pymc PYTHON, a Python that has PyMC and nutpie")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder, steps = DOCS, None
    if args.smoke:
        folder, steps = ROOT / "out" / "benchmarks", 60
        args.models, args.repeats, args.ours = ["dogs-dogs"], 1, ["nfvi_cold"]
        args.rivals = ["iaf_pyro"]
    kept = folder / "time_to_posterior.json"
    fresh = args.fresh or args.smoke or not kept.exists()
    results = {"rows": {}} if fresh else json.loads(kept.read_text())
    if args.page:
        print(f"wrote {save(results, folder)}")
        return
    results["environment"] = environment()
    for name in args.models:
        for repeat in range(args.repeats):
            # The order turns round, so that no side always comes first; warm follows cold.
            sides = [*args.ours, *args.rivals]
            for side in sides if repeat % 2 == 0 else [*args.rivals, *args.ours]:
                key = f"{name}|{side}|{repeat}"
                absent = side == "nutpie" and name in NOT_IN_PYMC
                if key in results["rows"] or absent:
                    continue
                row = measured(name, side, repeat, args, results["rows"], steps)
                results["rows"][key] = row
                print(f"{key}: {brief(row)}", flush=True)
                save(results, folder)
    print(f"wrote {save(results, folder)}")


def brief(row):
    if "error" in row:
        return row["error"]
    warm = f" ({row['warm_cpu']:.2f} without compiling)" if "warm_cpu" in row else ""
    return f"{row['cpu']:.2f} CPU s{warm}, W1 {row.get('w1_over_floor', math.nan):.2f}"


# ------------------------------------------------------------------------------- one side


def measured(name, side, repeat, args, rows, steps):
    try:
        posterior = with_reference(name, args.numpyro)
        if side in OURS:
            return ours(posterior, side, repeat, steps)
        if side == "iaf_pyro":
            return best_of(posterior, lambda n: iaf_pyro(posterior, n, repeat), steps)
        if side == "nutpie":
            return nutpie(args.pymc, posterior, repeat)
        if side == "nuts_enough":
            goal = goal_of(rows, name)
            if goal is None:
                return {"error": "there is no row of nfvi_warm to measure it by"}
            return process.nuts(
                args.numpyro, posterior, scores_of, repeat, goal, (250, *process.SIZES)
            )
        with process.Rival(args.numpyro, posterior) as rival:
            if side == "iaf_numpyro":
                settings = {"particles": 8, "rate": 0.01, "last_rate": 0.001, "draws": DRAWS}

                def fitted(count):
                    return scored(
                        posterior, *rival.sample("iaf", seed=repeat, steps=count, **settings)
                    )

                return {**best_of(posterior, fitted, steps), **rival.versions}
            draws, found = rival.sample(
                "nuts", seed=repeat, warmup=LENGTH, draws=LENGTH, chains=CHAINS
            )
            return {**scored(posterior, draws, found, CHAINS), **rival.versions}
    except process.NoNumPyroError:
        raise
    except Exception as error:  # a side that fails is a result too
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def ours(posterior, side, repeat, steps):
    """A process of ours: cold with an empty cache, warm with that of an earlier one."""
    method, cache = side.split("_")
    folder = ROOT / "out" / "time_to_posterior" / f"{posterior.name}-{method}-{repeat}"
    if cache == "cold":
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    elif not folder.exists():  # compiled by a run that does not count
        run_ours(posterior, method, repeat, folder, steps)
    folder.mkdir(parents=True, exist_ok=True)
    return run_ours(posterior, method, repeat, folder, steps)


def run_ours(posterior, method, seed, folder, steps):
    method = method if steps is None else f"{method}:{steps}"
    command = [sys.executable, str(HERE / "time_rivals" / "our_worker.py"), posterior.name, method]
    found = asked(command, seed, {"XDG_CACHE_HOME": str(folder)})
    return scored(posterior, *found, COUNTED.get(f"{method}_warm"))


def iaf_pyro(posterior, steps, seed):
    method = f"iaf_pyro:{steps}"
    command = [sys.executable, str(HERE / "time_rivals" / "our_worker.py"), posterior.name, method]
    return scored(posterior, *asked(command, seed, {}))


def nutpie(python, posterior, seed):
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **{name: np.asarray(value) for name, value in posterior.data.items()})
        worker = HERE / "time_rivals" / "pymc_worker.py"
        command = [python, str(worker), posterior.name, str(data)]
        return scored(posterior, *asked(command, seed, {}), CHAINS)


def asked(command, seed, variables):
    """Run a worker; return its draws as tensors, and what it printed."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "draws.npz"
        done = subprocess.run(
            [*command, str(seed), str(into)], capture_output=True, text=True,
            env={**os.environ, **threads, **variables}, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise RuntimeError(lines[-1])
        found = json.loads(done.stdout.strip().splitlines()[-1])
        with np.load(into) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}, found


def best_of(posterior, fitted, steps):
    """The best of runs of more and more steps, each with its cost, until more is no better."""
    tries = []
    for count in GUIDE_STEPS if steps is None else (steps,):
        tries.append({**fitted(count), "guide_steps": count})
        if len(tries) > 1 and tries[-1]["w1_over_floor"] > tries[-2]["w1_over_floor"] - HALF / 5:
            break
    del posterior
    best = min(tries, key=lambda row: row["w1_over_floor"])
    return {**best, "tries": [(t["guide_steps"], t["w1_over_floor"], t["cpu"]) for t in tries]}


# --------------------------------------------------------------------------------- scores


def scored(posterior, draws, found, chains=None):
    row = {**found, **process.finite(scores_of(posterior, draws))}
    return row if chains is None else {**row, "ess": effective(posterior, draws, chains)}


def effective(posterior, draws, chains):
    """The smaller of bulk and tail effective size, of the worst number that is compared."""
    parts = [draws[site].detach().double() for site in posterior.sites]
    numbers = torch.cat([part.reshape(chains, len(part) // chains, -1) for part in parts], -1)
    sizes = torch.minimum(bulk_ess(numbers), tail_ess(numbers))
    return float(sizes[sizes.isfinite()].min())


def scores_of(posterior, draws):
    """Worst errors in reference sds, and the sliced W1 over that of as many exact draws."""
    arrays = {site: np.asarray(draws[site].detach()) for site in posterior.sites}
    step = max(1, len(next(iter(arrays.values()))) // DRAWS)
    arrays = {site: value[step - 1 :: step] for site, value in arrays.items()}
    reference = posterior.reference
    if isinstance(reference, Long):
        flat = [arrays[site].reshape(len(arrays[site]), -1) for site in posterior.sites]
        numbers = np.concatenate(flat, 1)
        found = compare(reference.names, numbers, reference.draws, reference.mean, reference.sd)
    else:
        found = score(arrays, reference)
    floor = reference.floor["sliced_w1"]
    return {**found.summary(), "w1_over_floor": found.summary()["sliced_w1"] / floor}


def with_reference(name, python):
    if name in MODELS:
        return load(name)
    kept = ROOT / "out" / "time_to_posterior" / f"{name}.npz"
    posterior = load_larger(name)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with process.Rival(python, posterior) as rival:
            draws, _ = rival.sample("nuts", seed=99, warmup=1000, draws=2500, chains=4)
        parts = [np.asarray(draws[site]).reshape(10_000, -1) for site in posterior.sites]
        np.savez(kept, draws=np.concatenate(parts, 1))
    with np.load(kept) as file:
        draws = file["draws"]
    held = np.zeros(len(draws), bool)
    held[::5] = True
    names = tuple(map(str, range(draws.shape[1])))
    mean, sd = draws.mean(0), draws.std(0, ddof=1)
    rest = draws[~held]
    floor = compare(names, draws[held], rest, rest.mean(0), rest.std(0, ddof=1)).summary()
    return load_larger(name, Long(names, mean, sd, draws[held], floor))


def goal_of(rows, name):
    found = [r["w1_over_floor"] for r in of(rows, name, "nfvi_warm") if "w1_over_floor" in r]
    return statistics.median(found) + HALF if found else None


# ----------------------------------------------------------------------------------- page


def turns(rows):
    """Rows of each posterior that were measured one after the other, in the order of the file."""
    found = []
    for key, row in rows.items():
        name, side, _ = key.split("|")
        if not found or found[-1][0] != name:
            found.append((name, {}))
        found[-1][1].setdefault(side, []).append(row)
    return found


def of(rows, name, side):
    return [row for key, row in rows.items() if key.split("|")[:2] == [name, side]]


def median(sides, side, field):
    found = [row[field] for row in sides.get(side, ()) if field in row]
    return statistics.median(found) if found else math.nan


def cell(sides, side):
    if side not in sides:
        return ""
    cpu = median(sides, side, "cpu")
    if math.isnan(cpu):
        return "failed"
    warm = median(sides, side, "warm_cpu")
    text = f"{cpu:.1f}" if math.isnan(warm) else f"{cpu:.1f} / {warm:.2f}"
    return f"{text} ({median(sides, side, 'w1_over_floor'):.1f})"


def page(results):
    rows = results["rows"]
    repeats = 1 + max((int(key.split("|")[2]) for key in rows), default=0)
    body = [
        "Processor seconds from the call to 2,000 draws, one thread of arithmetic, child processes "
        "(compilers) counted, imports not; in brackets the sliced Wasserstein distance to "
        "reference draws over that of as many exact draws (1 is exact). "
        "*Cold* is a first run with an empty cache, *warm* a new process that finds "
        "what the first compiled. Of NumPyro's rows the second number is "
        "without tracing and compiling. "
        f"{'Medians of ' + str(repeats) + ' runs' if repeats > 1 else 'One run each'}. The sides "
        "of a table took turns on each posterior; sides that were run at other times stand in "
        "tables of their own. Empty cells were not run.",
        *times(rows),
        comparisons(rows),
        effective_draws(rows),
        f"Wall clock and errors of means and sds: time_to_posterior.json. {versions(rows)}"
        f"{in_words(results['environment'])} Made by `benchmarks/time_to_posterior.py`.",
    ]
    return "\n\n".join(part for part in body if part)


def times(rows):
    """A table for each of our sides that took turns, with what took turns with them."""
    groups = {}
    for name, sides in turns(rows):
        ours_there = tuple(side for side in OURS if side in sides)
        if ours_there:  # a rival alone is beside nothing
            groups.setdefault(ours_there, []).append((name, sides))
    tables = []
    for blocks in groups.values():
        shown = [side for side in TITLES if any(side in sides for _, sides in blocks)]
        lines = [[short(name), *(cell(sides, s) for s in shown)] for name, sides in listed(blocks)]
        tables.append(table(["posterior", *(TITLES[side] for side in shown)], lines))
    return tables


def listed(blocks):
    order = [*MODELS, *LARGER]
    return sorted(blocks, key=lambda block: order.index(block[0]))


def short(name):
    return name.split("-")[-1]


def versions(rows):
    """Name the rivals' versions, and the seed of the first run."""
    found = {
        name: str(row[name])
        for row in rows.values()
        for name in ("numpyro", "jax", "nutpie", "pymc")
        if name in row
    }
    words = "".join(f"{name} {version}, " for name, version in sorted(found.items()))
    return f"{words}seeds from 0. "


def pairs_of(rows, mine, rival, field):
    """Our time and a rival's, for those of the sixteen on which they took turns."""
    pairs = [
        (median(sides, mine, "cpu"), median(sides, rival, field))
        for name, sides in turns(rows)
        if name in MODELS
    ]
    return [pair for pair in pairs if not math.isnan(sum(pair))]


def comparisons(rows):
    """Count, over those of the sixteen on which both took turns, where ours takes less."""
    found = []
    for mine in OURS:
        for rival in (*NUMPYRO, *OTHERS):
            for field, words in (("cpu", ""), ("warm_cpu", ", compiling left out")):
                pairs = pairs_of(rows, mine, rival, field)
                if not pairs:
                    continue
                less = sum(a < b for a, b in pairs)
                ratio = statistics.median(b / a for a, b in pairs)
                found.append(
                    [TITLES[mine], TITLES[rival] + words, f"{less} of {len(pairs)}", f"{ratio:.2f}"]
                )
    if not found:
        return ""
    return table(["ours", "rival", "ours takes less", "rival's time over ours, median"], found)


def effective_draws(rows):
    """Effective draws a second, what goes before the draws included."""
    mine = [("chains_cold", "cpu"), ("chains_warm", "cpu")]
    theirs = [(s, f) for s in ("nuts_numpyro", "nutpie") for f in ("cpu", "warm_cpu")]
    blocks = []
    for name, sides in listed(turns(rows)):
        rates = {
            (side, field): median(sides, side, "ess") / median(sides, side, field)
            for side, field in (*mine, *theirs)
        }
        rates = {column: rate for column, rate in rates.items() if not math.isnan(rate)}
        if rates.keys() & set(mine) and rates.keys() & set(theirs):
            blocks.append((name, rates))
    if not blocks:
        return ""
    columns = [c for c in (*mine, *theirs) if any(c in rates for _, rates in blocks)]
    header = [TITLES[s] + ", compiled before" * (f == "warm_cpu") for s, f in columns]
    lines = [
        [short(name), *(f"{rates[c]:,.0f}" if c in rates else "" for c in columns)]
        for name, rates in blocks
    ]
    counts = []
    for ours_here in filter(columns.__contains__, mine):
        for rival in filter(columns.__contains__, theirs):
            pairs = [
                (rates[ours_here], rates[rival])
                for name, rates in blocks
                if name in MODELS and {ours_here, rival} <= rates.keys()
            ]
            if pairs:
                more = sum(a > b for a, b in pairs)
                middle = statistics.median(a / b for a, b in pairs)
                titles = [header[columns.index(column)] for column in (ours_here, rival)]
                counts.append([*titles, f"{more} of {len(pairs)}", f"{middle:.2f}"])
    return "\n\n".join(
        [
            "## Effective draws a second",
            "The smaller of bulk and tail effective sample size, of the worst number compared, by "
            "processor second of the whole: the fit, its compile where cold, warm-up and draws of "
            "`fit.mcmc`; warm-up and draws of the others, whose compile is left out where the "
            "column says so. 32,000 draws of 64 chains stand beside 4,000 of four: the rate of all "
            "depends on how many draws are asked for. All sides of a row took turns.",
            table(["posterior", *header], lines),
            table(["ours", "rival", "ours makes more", "ours over the rival's, median"], counts),
        ]
    )


def save(results, folder):
    return write("time_to_posterior", "Time to a posterior", results, page(results), folder)


if __name__ == "__main__":
    main()
