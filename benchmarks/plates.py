"""Latents in the rows of plates: bound, marginals, held-out density, time and memory.

    python benchmarks/plates.py --numpyro PATH/TO/python    # writes docs/benchmarks/plates.md
    python benchmarks/plates.py --cases normal --sizes 1000 10000 --who nfvi pyro_normal --keep
    python benchmarks/plates.py --smoke                     # a minute, prints only

Each fit is a process of its own, which reads the same data; those of a case and size run one after
the other, seed by seed. Bounds are those of all rows, on draws that no step has seen. Truths are by
quadrature: of the globals in closed form and on a grid, and row by row. ``--keep`` adds to the
results that are there instead of starting anew. ``--page`` writes the page alone.

Ours is ``NFVI(model).run(data)``. Rivals take Adam with a rate from 0.02 down to 0.0002, clipped,
``--steps`` steps of one particle; from ``--batch-from`` rows on all see mini-batches of ``--batch``
rows, and the low-rank normal, which cannot, is left out.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import numpy as np
import torch

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.plate_rivals.cases import CASES, compared_rows

FOLDER = ROOT / "benchmarks" / "plate_rivals"
TITLES = {
    "nfvi": "`NFVI(model).run(data)`",
    "nfvi_gaussian": "`NFVI(model, guide='gaussian')`",
    "pyro_normal": "Pyro AutoNormal",
    "pyro_low_rank": "Pyro AutoLowRankMultivariateNormal",
    "pyro_list": "Pyro AutoGuideList (full, then normal)",
    "pyro_normal_long": "Pyro AutoNormal, four times the steps",
    "numpyro_normal": "NumPyro AutoNormal",
    "numpyro_normal_long": "NumPyro AutoNormal, four times the steps",
    "numpyro_dais": "NumPyro AutoSemiDAIS",
}
#: Most rows of a guide whose cost or memory is not that of a row.
MOST_ROWS = {"pyro_low_rank": 10_000, "nfvi_gaussian": 3_000, "pyro_list": 100_000}


def fitted(who, name, size, seed, args):
    """Fit one case in a process, and score what comes back."""
    case = CASES[name]
    data = case.make(size, seed)
    batch = args.batch if size >= args.batch_from else None
    with tempfile.TemporaryDirectory() as folder:
        files = {key: str(Path(folder) / f"{key}.npz") for key in ("data", "into")}
        np.savez(files["data"], **data)
        request = {
            "case": name, "who": who.removesuffix("_long"), "seed": seed,
            "steps": args.steps * (4 if who.endswith("_long") else 1), "particles": 1,
            "batch": batch, "threads": args.threads, "max_steps": args.max_steps, **files,
            "rows": [site for site, row in case.sites.items() if row],
        }  # fmt: skip
        asked = Path(folder) / "request.json"
        asked.write_text(json.dumps(request))
        other = who.startswith("numpyro")
        python = args.numpyro if other else sys.executable
        worker = FOLDER / ("numpyro_worker.py" if other else "our_worker.py")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
        flags = f"--xla_cpu_multi_thread_eigen={str(args.threads > 1).lower()}"
        threads["XLA_FLAGS"] = f"{flags} intra_op_parallelism_threads={args.threads}"
        try:
            run = subprocess.run(
                [python, str(worker), str(asked)],
                capture_output=True, text=True, check=False, timeout=args.timeout,
                env={**os.environ, **threads, "JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {args.timeout} s"}
        lines = [line for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
        if not lines:
            words = [one for one in run.stderr.splitlines() if "Error" in one] or ["no answer"]
            return {"error": words[-1][:300]}
        answer = json.loads(lines[-1][7:])
        with np.load(files["into"]) as file:
            draws = {key: torch.from_numpy(file[key]).double() for key in file.files}
    return answer | scores(case, size, data, draws, answer["elbo"])


def scores(case, size, data, draws, elbo):
    """Compare a fit with the truth, as far as there is one."""
    found = {"bound_per_row": elbo / size}
    if set(case.sites) <= set(draws):
        found["held_out"] = case.held_out(data, draws)
    found |= coverage(case, data, draws)
    if case.truth is None:
        return found
    truth = case.truth(data)
    found["gap_per_row"] = (truth.evidence - elbo) / size
    mean_errors, sd_errors, of_globals = [], [], []
    for site, (mean, sd) in truth.moments.items():
        if site not in draws:
            continue
        drawn = draws[site].reshape(len(draws[site]), -1)
        off = ((drawn.mean(0) - mean.reshape(-1)) / sd.reshape(-1)).abs()
        wide = drawn.std(0) / sd.reshape(-1) - 1
        if case.sites[site]:
            mean_errors.append(off)
            sd_errors.append(wide)
        else:
            of_globals.append([float(off), float(wide)])
    if mean_errors:
        off, wide = torch.cat(mean_errors), torch.cat(sd_errors)
        found |= {
            "row_mean_error": float(off.mean()),
            "row_mean_worst": float(off.max()),
            "row_sd_error": float(wide.abs().mean()),
        }
    if of_globals:
        found["global_mean_error"] = max(one[0] for one in of_globals)
        found["global_sd_error"] = max((one[1] for one in of_globals), key=abs)
    return found


def coverage(case, data, draws):
    """Shares of the compared rows whose interval has what the data were made with."""
    rows = compared_rows(len(data["y"]))
    inside = {50: [], 90: []}
    for site in case.sites:
        if f"true_{site}" not in data or site not in draws:
            continue
        true = torch.from_numpy(data[f"true_{site}"][rows]).reshape(draws[site].shape[1:])
        for level, found in inside.items():
            tail = (1 - level / 100) / 2
            low, high = draws[site].quantile(torch.tensor([tail, 1 - tail]).double(), dim=0)
            found.append(((true >= low) & (true <= high)).double().reshape(-1))
    return {
        f"covered_{level}": float(torch.cat(found).mean())
        for level, found in inside.items()
        if found
    }


def page(results):
    """Write the page from the results."""
    parts = []
    rows, seeds = results["rows"], results["options"]["seeds"]
    for name, case in CASES.items():
        keys = [key for key in rows if key.split("|")[0] == name]
        if not keys:
            continue
        lines = []
        for size in sorted({int(key.split("|")[1]) for key in keys}):
            for who, title in TITLES.items():
                mine = [
                    row for key, row in rows.items() if key.split("|")[:3] == [name, str(size), who]
                ]
                if mine:
                    base = f"{name}|{size}|{who.removesuffix('_long')}"
                    both = [(rows.get(f"{base}|{i}"), rows.get(f"{base}_long|{i}")) for i in seeds]
                    title += remark(name, mine, both)
                    lines.append([f"{size:,}", title, *line(mine)])
        head = [
            "rows", "guide", "bound a row", "gap a row", "mean error, rows", "sd error, rows",
            "mean error, globals", "sd error, globals", "in 50 %", "in 90 %", "held out",
            "s", "CPU s", "GB",
        ]  # fmt: skip
        parts.append(f"## {case.title}\n\n{WORDS[name]}\n\n{table(head, lines)}")
    body = (
        f"{in_words(results['environment'])}\n\n{INTRODUCTION.format(**results['options'])}\n\n"
        + "\n\n".join(parts)
    )
    return write("plates", "Latents in plates", results, body)


def remark(name, rows, both):
    """Say what a fit says of itself, or that a rival has not converged."""
    words = {row["verdict"] for row in rows if "verdict" in row}
    if words:
        return f" ({', '.join(sorted(words))})"
    fine = [row for row in rows if "error" not in row]
    # A normal distribution of each row is right in hierarchies of normals, up to thousandths.
    far = name in ("normal", "funnel") and any(row["gap_per_row"] > 0.05 for row in fine)
    moved = any(
        abs(a["bound_per_row"] - b["bound_per_row"]) > 0.01
        for a, b in both
        if a and b and "error" not in a and "error" not in b
    )
    return ", not converged" if far or moved else ""


def line(rows):
    """One line of a table: medians over seeds, or what went wrong."""
    fine = [row for row in rows if "error" not in row]
    if not fine:
        return [rows[0]["error"].replace("|", "/")[:80], *[""] * 11]

    def middle(key, form):
        values = [row[key] for row in fine if key in row and math.isfinite(row[key])]
        return form.format(statistics.median(values)) if values else ""

    return [
        middle("bound_per_row", "{:.4f}"),
        middle("gap_per_row", "{:.4f}"),
        middle("row_mean_error", "{:.3f}"),
        middle("row_sd_error", "{:.1%}"),
        middle("global_mean_error", "{:.2f}"),
        middle("global_sd_error", "{:+.0%}"),
        middle("covered_50", "{:.0%}"),
        middle("covered_90", "{:.0%}"),
        middle("held_out", "{:.4f}"),
        middle("seconds", "{:.1f}"),
        middle("cpu", "{:.1f}"),
        "{:.2f}".format(statistics.median(row["memory"] for row in fine) / 1e9),
    ]


INTRODUCTION = """Every fit is a process of its own, {threads} thread(s), on the same data. The
*bound* is the ELBO of all rows over their number, in nats, on draws that no step has seen; the
*gap* is what it is below the evidence, by quadrature. Errors of means are in sds of the truth;
those of rows are averages over 500 rows, those of globals the worst. *In 50 %* and *in 90 %* are
the shares of these rows whose central interval has what the data were made with. *Held out* is the
mean log predictive density of an observation that no fit has seen, in nats, of these rows. Times
are those of the fit, with compiling and, for ours, with all checks. Rivals take {steps} steps, and
some of them four times as many beside: where the two bounds differ by more than 0.01 nats a row,
up or down, neither is said to have converged; nor is a rival in a hierarchy of normals that is
0.05 nats a row below the evidence. With ours stands the verdict of the fit. From {batch_from} rows
on all see mini-batches of {batch}. Medians over seeds {seeds}."""
HIERARCHY = (
    "$\\theta_r \\sim N(\\mu, \\tau)$, $y_r \\sim N(\\theta_r, \\sigma_r)$, with $\\mu$ and "
    "$\\tau$ unknown, "
)
WORDS = {
    "normal": HIERARCHY + "$\\tau = 0.7$ and all $\\sigma_r = 0.5$.",
    "funnel": HIERARCHY + "$\\tau = 0.5$ and $\\sigma_r$ from 0.5 to 2.",
    "rows_skewed": "$z_r \\sim N(0, 1)$, $y_r \\sim \\mathrm{Poisson}(e^{z_r - 1})$, no globals.",
    "rows_bimodal": "$z_r \\sim N(0, 1)$, $y_r \\sim N(z_r^2/2, 0.4)$, no globals.",
    "rows_funnel": (
        "$z_r \\sim N(0, 1)$, $x_r \\sim N(0, e^{0.75 z_r})$, $y_r \\sim N(x_r, 0.3)$, no globals."
    ),
    "irt": (
        "Thirty items; every tenth answer is held out. No closed form: the bound and the held-out "
        "density say which is better. Measured with fewer persons than the 2,000 of the script."
    ),
    "radon": (
        "Three floors a county, three houses a floor, five unknown numbers beside. No closed form. "
        "Measured with fewer counties than the 1,000 of the script."
    ),
}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--who", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--sizes", nargs="+", type=int, help="rows, instead of the case's own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--max-steps", type=int, help="most steps of ours")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--batch-from", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=1200, help="seconds of one fit")
    parser.add_argument("--numpyro", metavar="PYTHON", help="a Python that has NumPyro")
    parser.add_argument("--keep", action="store_true", help="add to the results that are there")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args()
    file = DOCS / "plates.json"
    if args.page:
        print(page(json.loads(file.read_text())))
        return
    if args.smoke:
        args.steps, args.max_steps = 30, 30
    results = {"environment": environment(), "rows": {}}
    results["environment"]["threads"] = args.threads
    if args.keep and file.exists():
        results["rows"] = json.loads(file.read_text())["rows"]
    names = ("steps", "batch", "batch_from", "threads", "seeds")
    results["options"] = {name: getattr(args, name) for name in names}
    for name in args.cases:
        case = CASES[name]
        for size in args.sizes or ([case.smoke] if args.smoke else case.sizes):
            for seed in args.seeds:
                for who in args.who:
                    if who.startswith("numpyro") and not args.numpyro:
                        continue
                    if size > MOST_ROWS.get(who, size):
                        continue
                    found = fitted(who, name, size, seed, args)
                    results["rows"][f"{name}|{size}|{who}|{seed}"] = found
                    print(name, size, who, json.dumps(found), flush=True)
                    if not args.smoke:
                        file.write_text(json.dumps(results, indent=1) + "\n")
    if args.smoke:
        failed = [row for row in results["rows"].values() if "error" in row]
        if failed:
            raise SystemExit(f"{len(failed)} fits failed: {failed[0]['error']}")
        return
    print(page(results))


if __name__ == "__main__":
    main()
