"""One fit by 1, 2 and 4 processes of torchrun: the same numbers, and the work of each process.

    python benchmarks/processes.py            # writes docs/benchmarks/processes.{md,json}
    python benchmarks/processes.py --smoke    # few rows, writes to out/benchmarks

A logistic regression with so many rows that it costs far more than the flow; and a hierarchy whose
groups are drawn in mini-batches, with a table of them or with an encoder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import pyro_nfvi as nfvi
from benchmarks._report import DOCS, ROOT, environment, in_words, table, write

PROCESSES, STEPS, FEATURES = (1, 2, 4), 200, 10
GROUPS, BATCH = 60, 10
WHAT = {
    "regression": "logistic regression",
    "table": "groups with a table",
    "encoder": "groups with an encoder",
}


def model(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=weights @ x.T), obs=y)


def groups(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y), subsample_size=BATCH) as rows:
        place = pyro.sample("place", dist.Normal(mean, sd))
        pyro.sample("y", dist.Normal(place.unsqueeze(-1), 1.0).to_event(1), obs=y[rows])


def prepared(what, rows):
    """Return the model, its guide and its data."""
    noise = torch.Generator().manual_seed(0)
    if what == "regression":
        x = torch.randn(rows, FEATURES, generator=noise)
        y = torch.bernoulli(torch.sigmoid(x.sum(1) / 2), generator=noise)
        return model, "iaf", (x, y)
    place = 2 + 1.5 * torch.randn(GROUPS, 1, generator=noise)
    y = place + torch.randn(GROUPS, 2, generator=noise)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    more = {"encoder": {"groups": net}} if what == "encoder" else {}
    return groups, nfvi.AutoPlateFlow(groups, **more), (y,)


def work(what, rows, path):
    """Make the fit in one process of however many there are."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    fitted, guide, data = prepared(what, rows)
    wall, cpu = time.perf_counter(), time.process_time()
    fit = nfvi.NFVI(
        fitted, guide=guide, max_steps=STEPS, stop=False, seed=0, engine="eager", explore="off",
        progress=False,
    ).run(*data)  # fmt: skip
    held = {
        "losses": fit.losses,
        "params": torch.cat([p.detach().reshape(-1) for p in fit.guide.parameters()]),
        "step": fit.timing.step,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }
    torch.save(held, f"{path}.{os.environ.get('RANK', '0')}")


def fitted(what, count, rows, folder):
    """Make the fit by so many processes; return what each of them held."""
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    path = Path(folder) / f"{what}{count}"
    subprocess.run(
        [*start, __file__, "--worker", str(path), "--what", what, "--rows", str(rows)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    return [torch.load(f"{path}.{rank}") for rank in range(count)]


def row_of(what, count, held, one):
    """Return what the processes of a fit found, beside the fit by one process."""
    return {
        "what": what,
        "processes": count,
        "losses": max(float((each["losses"] - one["losses"]).abs().max()) for each in held),
        "params": max(float((each["params"] - one["params"]).abs().max()) for each in held),
        "step": held[0]["step"],
        "wall": held[0]["wall"],
        "cpu": max(each["cpu"] for each in held),
    }


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few rows, one and two processes")
    parser.add_argument("--worker", help="file of a process of a fit")
    parser.add_argument("--what", choices=WHAT, default="regression", help="what that process fits")
    parser.add_argument("--rows", type=int, default=4_000)
    given = parser.parse_args()
    if given.worker:
        work(given.what, given.rows, given.worker)
        return
    rows = 500 if given.smoke else given.rows
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for what in WHAT:
            counts = PROCESSES[:2] if given.smoke else PROCESSES
            found = {count: fitted(what, count, rows, folder) for count in counts}
            results += [row_of(what, count, held, found[1][0]) for count, held in found.items()]
    lines = [
        [
            WHAT[row["what"]], row["processes"], f"{row['losses']:.1e}", f"{row['params']:.1e}",
            f"{1e3 * row['step']:.1f}", f"{row['wall']:.1f}", f"{row['cpu']:.1f}",
        ]
        for row in results
    ]  # fmt: skip
    head = [
        "fit", "processes", "bounds differ by", "parameters by", "ms a step", "s, all",
        "CPU s of the busiest process",
    ]  # fmt: skip
    env = environment()
    body = f"""
A logistic regression with {rows:,} rows and {FEATURES} coefficients, {STEPS} steps of 64
particles; and a normal hierarchy of {GROUPS} groups in mini-batches of {BATCH}, by
`AutoPlateFlow` with a table of rows or with an encoder, {STEPS} steps of 64 particles. In float64,
by `torchrun --nproc-per-node n`. Differences are from the fit by one process, over all steps and
all processes, bounds in nats. The machine has {os.cpu_count()} cores, which had other work: the
last column says how the work is divided. It counts the whole
call. Of the regression, set-up and flow are not divided; of the groups, set-up is not, and a step
of so few numbers is mostly PyTorch's own time for each operation, which every process pays.

{table(head, lines)}

{in_words(env)} `python benchmarks/processes.py` writes this page.
"""
    folder = ROOT / "out" / "benchmarks" if given.smoke else DOCS
    print(
        write(
            "processes",
            "One fit by several processes",
            {"environment": env, "rows": results},
            body,
            folder,
        )
    )


if __name__ == "__main__":
    main()
