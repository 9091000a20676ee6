"""Memory and time of a training step at 4 to 64 couplings, with and without reversible=True.

    python benchmarks/reversible.py            # writes docs/benchmarks/reversible.{md,json}
    python benchmarks/reversible.py --smoke    # few rows, writes to out/benchmarks

Each cell is a process of its own: its memory is the peak of the process above what it held before
the step, its time the processor time of the fastest of three steps.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import FlowDensity
from pyro_nfvi.flows import make_flow

DEPTHS, DIM, HIDDEN = (4, 16, 64), 16, 64


def peak():
    """Largest memory that the process has held so far, in MB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)


def step(depth, rows, *, reversible):
    """Memory and time of a step of maximum likelihood, and its gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("error")  # a chain that does not come back is no measurement
    flow = make_flow(f"realnvp*{depth}", DIM, hidden_dim=HIDDEN, reversible=reversible)
    with torch.no_grad():  # away from the identity, by little in a layer
        for parameter in flow.parameters():
            parameter.add_(0.005 * torch.randn(parameter.shape))
    density = FlowDensity(flow)
    x = torch.randn(rows, DIM)
    density.log_prob(x[:10]).sum().backward()  # first calls load code
    before, seconds = peak(), []
    for _ in range(3):
        density.zero_grad()
        start = time.process_time()
        (-density.log_prob(x).mean()).backward()
        seconds.append(time.process_time() - start)
    gradient = torch.cat([one.grad.reshape(-1) for one in density.parameters()])
    return peak() - before, min(seconds), gradient


def measured(depth, rows, folder, *, reversible):
    """The same in a process of its own."""
    path = folder / f"gradient_{depth}_{reversible}.pt"
    found = subprocess.run(
        [
            sys.executable, __file__, "--worker", str(path), "--depth", str(depth),
            "--rows", str(rows), *(["--reversible"] * reversible),
        ],
        check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
             "MALLOC_MMAP_THRESHOLD_": "65536"},  # freed memory goes back at once
    )  # fmt: skip
    memory, seconds = json.loads(found.stdout)
    gradient = torch.load(path)
    path.unlink()
    return memory, seconds, gradient


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few rows")
    parser.add_argument("--worker", help="file for the gradient of a process")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--reversible", action="store_true")
    given = parser.parse_args()
    if given.worker:
        memory, seconds, gradient = step(given.depth, given.rows, reversible=given.reversible)
        torch.save(gradient, given.worker)
        print(json.dumps([memory, seconds]))
        return
    torch.set_num_threads(1)
    rows = 200 if given.smoke else given.rows
    folder = ROOT / "out" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for depth in DEPTHS[:1] if given.smoke else DEPTHS:
        plain = measured(depth, rows, folder, reversible=False)
        back = measured(depth, rows, folder, reversible=True)
        apart = float((back[2] - plain[2]).norm() / plain[2].norm())
        results[depth] = {
            "memory_mb": plain[0], "memory_reversible_mb": back[0], "seconds": plain[1],
            "seconds_reversible": back[1], "gradient_distance": apart,
        }  # fmt: skip
    env = environment()
    lines = [
        [
            depth, f"{one['memory_mb']:.0f}", f"{one['memory_reversible_mb']:.0f}",
            f"{one['seconds']:.2f}", f"{one['seconds_reversible']:.2f}",
            f"{one['gradient_distance']:.1g}",
        ]
        for depth, one in results.items()
    ]  # fmt: skip
    header = [
        "couplings", "memory, MB", "reversible, MB", "time, s", "reversible, s",
        "distance of the gradients",
    ]  # fmt: skip
    body = f"""
A step of maximum likelihood of `realnvp*K` on {rows:,} rows of {DIM} numbers, conditioners
{HIDDEN} wide, float32: the gradient of the mean of `density.log_prob`. With
`make_flow(..., reversible=True)` or
`Chain(..., reversible=True)` the backward pass rebuilds each layer's input from its output, so
that activations of one layer at a time are held. Written by `benchmarks/reversible.py`; each cell
is a process of its own.

{table(header, lines)}

Memory is the peak above what the process held before, time is processor time of the fastest of
three steps, and the last column is the relative distance of the two gradients of all parameters
(norms). Weights are close to the start (0.005 from it). Where layers stretch so much that float32
does not come back through all of them, a warning says so, and the gradient is computed with
activations in memory.

{in_words(env)}
"""
    target = folder if given.smoke else DOCS
    page = write("reversible", "Memory without activations: reversible chains",
                 {"environment": env, "rows": rows, "depths": results}, body, target)  # fmt: skip
    print(page.read_text())


if __name__ == "__main__":
    main()
