"""Time of one forward and backward pass of flows, ours against Pyro's, interleaved in one run.

    python benchmarks/flows.py            # writes docs/benchmarks/flows.md and flows.json
    python benchmarks/flows.py --smoke    # seconds, writes to out/benchmarks

One pass draws base noise, pushes it through all layers, scores it, and takes the gradient of
``sum(z^2)/2 + log q(z)`` with respect to all parameters. Both run in eager PyTorch in float32 on
one thread; CPU time is counted, so that other processes disturb little. A round times Pyro, ours
and nothing else; the ratio is taken within rounds.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, iterated, permute, planar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import ROOT, environment, in_words, table, write
from pyro_nfvi.flows import make_flow

#: name, layers K, dimension D, particles P; the first is the one that is promised.
CASES = [
    ("planar", 64, 100, 32),
    ("planar", 16, 10, 32),
    ("planar", 16, 100, 32),
    ("planar", 16, 1000, 32),
    ("iaf", 2, 10, 32),
    ("iaf", 2, 100, 32),
]
GOAL = 6.0


def pyro_pass(name, layers, dim, particles):
    if name == "planar":
        stack = iterated(layers, functools.partial(planar, dim))
        transforms = list(stack.parts) if hasattr(stack, "parts") else [stack]
    else:
        transforms = []
        for index in range(layers):
            if index:
                transforms.append(permute(dim, torch.arange(dim).flip(0)))
            transforms.append(affine_autoregressive(dim, hidden_dims=[hidden(dim)]))
    base = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, transforms)
    parameters = [p for t in transforms if hasattr(t, "parameters") for p in t.parameters()]

    def run():
        z = flow.rsample((particles,))
        loss = z.square().sum() / 2 + flow.log_prob(z).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return run, sum(p.numel() for p in parameters)


def our_pass(name, layers, dim, particles):
    options = {} if name == "planar" else {"hidden_dim": hidden(dim)}
    flow = make_flow(f"{name}*{layers}", dim, **options)
    parameters = list(flow.parameters())

    def run():
        x = torch.randn(particles, dim)
        y, ladj = flow(x)
        loss = y.square().sum() / 2 - x.square().sum() / 2 - ladj.sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return run, sum(p.numel() for p in parameters)


def hidden(dim):
    """Width of Pyro's masked net (its AutoIAFNormal takes D), the same for both."""
    return max(dim, 32)


def timed(run, seconds):
    """CPU seconds per call, over at least ``seconds``."""
    count, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds or count == 0:
        run()
        count += 1
    return spent / count


def measure(case, rounds, seconds):
    torch.manual_seed(0)
    (theirs, their_size), (ours, our_size) = pyro_pass(*case), our_pass(*case)
    for _ in range(2):
        theirs(), ours()
    pairs = [(timed(theirs, seconds), timed(ours, seconds)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    name, layers, dim, particles = case
    return {
        "flow": name,
        "layers": layers,
        "dim": dim,
        "particles": particles,
        "parameters_pyro": their_size,
        "parameters_ours": our_size,
        "pyro_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "ours_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one short round of each case")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seconds = (1, 0.01) if options.smoke else (options.rounds, 0.15)
    found = []
    for case in CASES:
        found.append(measure(case, rounds, seconds))
        row = found[-1]
        print(
            "{flow:7s} K={layers:<3d} D={dim:<5d} P={particles:<3d} Pyro {pyro_ms:8.2f} ms  "
            "ours {ours_ms:7.2f} ms  ratio {ratio_median:5.1f} "
            "({ratio_min:.1f} to {ratio_max:.1f})".format(**row),
            flush=True,
        )
    first = found[0]
    held = "reached" if first["ratio_median"] >= GOAL else "MISSED"
    print(f"Planar chain K=64, D=100, 32 particles: {first['ratio_median']:.1f} times faster than "
          f"Pyro's 64 Planar modules; the goal of {GOAL:.0f} is {held}.")  # fmt: skip
    env = environment()
    rows = [
        [
            f"{r['flow']}*{r['layers']}",
            r["dim"],
            r["particles"],
            f"{r['pyro_ms']:.2f}",
            f"{r['ours_ms']:.2f}",
            f"**{r['ratio_median']:.1f}** ({r['ratio_min']:.1f} to {r['ratio_max']:.1f})",
        ]
        for r in found
    ]
    header = ["flow", "D", "particles", "Pyro, ms", "ours, ms", "ratio: median (min to max)"]
    body = f"""
One pass forward (draw and score) and backward (all parameters) in eager PyTorch, float32, median
CPU time of {rounds} interleaved rounds. Pyro's side: its `Planar` modules in a row, its
`AffineAutoregressive` with the same hidden width as ours.

{table(header, rows)}

{in_words(env)} Written by `benchmarks/flows.py`.
"""
    folder = ROOT / "out" / "benchmarks" if options.smoke else None
    page = write("flows", "Time of a pass", {"environment": env, "results": found}, body, folder)
    print(f"Wrote {page.relative_to(ROOT)} and {page.with_suffix('.json').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
