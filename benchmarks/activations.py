"""Activations of masked nets: held-out NLL of MAF and NSF on several data sets, and the ELBO gap.

    python benchmarks/activations.py            # writes docs/benchmarks/activations.{md,json}
    python benchmarks/activations.py --smoke    # seconds, writes to out/benchmarks

What the defaults of ``iaf`` and ``maf`` rest on. Densities are fitted with the loop and the sizes
of ``benchmarks/density.py``; guides are trained on energies of ``benchmarks/energies.py``.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks import density, energies
from benchmarks._report import ROOT, environment, in_words, table, write
from pyro_nfvi import FlowDensity
from pyro_nfvi.flows import make_flow

ACTIVATIONS = ("tanh", "relu", "elu", "silu")


def plane(make):
    generator = torch.Generator().manual_seed(0)
    return [make(n, generator) for n in (10_000, 2000, 10_000)]


def rings(n, generator):
    radius = 0.5 * torch.randint(1, 5, (n,), generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    return radius.unsqueeze(-1) * circle + 0.05 * torch.randn(n, 2, generator=generator)


def checkerboard(n, generator):
    x = 4 * torch.rand(n, generator=generator) - 2
    y = torch.rand(n, generator=generator) - 2 * torch.randint(0, 2, (n,), generator=generator)
    return torch.stack([x, y + x.floor() % 2], -1)


def banana(n, generator):
    a, b = torch.randn(2, n, generator=generator)
    return torch.stack([a, b / 4 + a.square() - 1], -1)


DATA = {
    "two moons": density.two_moons,
    "four rings": lambda: plane(rings),
    "checkerboard": lambda: plane(checkerboard),
    "banana": lambda: plane(banana),
}
if "breast cancer" in density.DATA:
    DATA["breast cancer"] = density.breast_cancer


def nll(name, parts, activation, seed, steps):
    torch.manual_seed(seed)
    dim = parts[0].shape[-1]
    flow = make_flow(f"{name}*3", dim, hidden_dim=density.WIDTHS, activation=activation)
    fitted = FlowDensity(flow.inv if name == "nsf-ar" else flow)
    return density.train(fitted, parts, steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--activations", nargs="+", default=ACTIVATIONS)
    parser.add_argument("--flows", nargs="+", default=("maf", "nsf-ar"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = (50, 1) if options.smoke else (options.steps, options.seeds)
    found = []
    for data, load in DATA.items():
        parts = load()
        for flow in options.flows:
            for activation in options.activations:
                runs = [nll(flow, parts, activation, seed, steps) for seed in range(seeds)]
                found.append({
                    "task": f"{data}, {flow}", "activation": activation,
                    "values": [run["nll"] for run in runs],
                    "ms_per_step": statistics.median(run["ms_per_step"] for run in runs),
                })  # fmt: skip
                tell(found[-1])
    for energy in energies.ENERGIES:
        for activation in options.activations:
            values = [
                energies.fit(energy, "iaf", 2, steps, seed=seed, activation=activation)[1]
                for seed in range(seeds)
            ]
            found.append({"task": f"{energy}, KL of iaf", "activation": activation,
                          "values": values})  # fmt: skip
            tell(found[-1])
    tasks = list(dict.fromkeys(row["task"] for row in found))
    cells = {(row["task"], row["activation"]): row["values"] for row in found}
    rows = [
        [task, *(spread(cells[task, activation]) for activation in options.activations)]
        for task in tasks
    ]
    env = environment()
    body = f"""
Held-out negative log densities of 3 layers with nets of {density.WIDTHS[0]}-{density.WIDTHS[1]}
({steps} steps of Adam at {density.RATE:g}, batches of {density.BATCH}), and KL(q, p) of `iaf*2` on
[four energies](energies.md) after {steps} steps; nats, lower is better; {seeds} seeds, mean (min to
max).

{table(["task", *options.activations], rows)}

{in_words(env)} `python benchmarks/activations.py` writes this page.
"""
    folder = ROOT / "out" / "benchmarks" if options.smoke else None
    results = {"environment": env, "steps": steps, "found": found}
    print(write("activations", "Activations of masked nets", results, body, folder))


def tell(row):
    print(f"{row['task']:24s} {row['activation']:5s} {spread(row['values'])}", flush=True)


def spread(values):
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
