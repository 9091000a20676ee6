"""One fit by 1, 2 and 4 processes of torchrun: the same numbers, and the work of each process.

    python benchmarks/processes.py            # writes docs/benchmarks/processes.{md,json}
    python benchmarks/processes.py --smoke    # few rows, writes to out/benchmarks

The model is a logistic regression with so many rows that it costs far more than the flow.
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


def model(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=weights @ x.T), obs=y)


def work(rows, path):
    """Make the fit in one process of however many there are."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(rows, FEATURES, generator=noise)
    y = torch.bernoulli(torch.sigmoid(x.sum(1) / 2), generator=noise)
    wall, cpu = time.perf_counter(), time.process_time()
    fit = nfvi.NFVI(
        model, guide="iaf", max_steps=STEPS, stop=False, seed=0, engine="eager", explore="off",
        progress=False,
    ).run(x, y)  # fmt: skip
    held = {
        "losses": fit.losses,
        "params": torch.cat([p.detach().reshape(-1) for p in fit.guide.parameters()]),
        "step": fit.timing.step,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }
    torch.save(held, f"{path}.{os.environ.get('RANK', '0')}")


def fitted(count, rows, folder):
    """Make the fit by so many processes; return what each of them held."""
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    path = Path(folder) / f"fit{count}"
    subprocess.run(
        [*start, __file__, "--worker", str(path), "--rows", str(rows)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    return [torch.load(f"{path}.{rank}") for rank in range(count)]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few rows")
    parser.add_argument("--worker", help="file of a process of a fit")
    parser.add_argument("--rows", type=int, default=4_000)
    given = parser.parse_args()
    if given.worker:
        work(given.rows, given.worker)
        return
    rows = 500 if given.smoke else given.rows
    with tempfile.TemporaryDirectory() as folder:
        found = {count: fitted(count, rows, folder) for count in PROCESSES}
    (one,) = found[1]
    results = [
        {
            "processes": count,
            "losses": max(float((each["losses"] - one["losses"]).abs().max()) for each in held),
            "params": max(float((each["params"] - one["params"]).abs().max()) for each in held),
            "step": held[0]["step"],
            "wall": held[0]["wall"],
            "cpu": max(each["cpu"] for each in held),
        }
        for count, held in found.items()
    ]
    lines = [
        [
            row["processes"], f"{row['losses']:.1e}", f"{row['params']:.1e}",
            f"{1e3 * row['step']:.1f}", f"{row['wall']:.1f}", f"{row['cpu']:.1f}",
        ]
        for row in results
    ]  # fmt: skip
    head = [
        "processes", "bounds differ by", "parameters by", "ms a step", "s, all",
        "CPU s of the busiest process",
    ]  # fmt: skip
    env = environment()
    body = f"""
A logistic regression with {rows:,} rows and {FEATURES} coefficients, {STEPS} steps of 64
particles in float64, by `torchrun --nproc-per-node n`. Differences are from the fit by one
process, over all steps and all processes, bounds in nats. The machine has {os.cpu_count()}
cores, which had other work: the last column says how the work is divided. It counts the whole
call, of which set-up and flow are not divided.

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
