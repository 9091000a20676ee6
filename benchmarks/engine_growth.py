"""How a step's cost grows with latents, particles and data, and what memory it takes.

    python benchmarks/engine_growth.py           # writes docs/benchmarks/engine_growth.md
    python benchmarks/engine_growth.py --smoke   # a minute, prints only

Each row is a process of its own that fits a logistic regression with the native engine: seconds
per step of the training loop by the clock, the median of three fits with the range, seconds to
capture and compile (nothing compiled before), and the largest memory of the process. Float32, one
thread, total gradient, Adam; IAF is two layers with two hidden layers as wide as there are latents,
ReLU.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import torch

from benchmarks._report import environment, in_words, table, write
from benchmarks.engine import environ

#: What grows, and (flow, latents, particles, rows of data, mini-batch or 0) of each row.
SERIES = {
    "Latents": [
        (flow, dim, 8, 1000, 0)
        for flow in ("iaf*2", "planar*16")
        for dim in (10, 30, 100, 300, 1000)
    ],
    "Particles": [
        (flow, 25, particles, 1000, 0)
        for flow in ("iaf*2", "planar*16")
        for particles in (1, 4, 16, 64, 256, 1024)
    ],
    "Data": [("iaf*2", 25, 8, rows, 256) for rows in (1000, 10_000, 100_000, 1_000_000)],
}
#: Seconds that a fit is given, about; fits.
SECONDS, FITS = 1.0, 3


def make(flow, dim, particles, rows, size):
    import pyro
    import pyro.distributions as dist

    from pyro_nfvi import NFVI, AutoFlow

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator)
    y = (torch.rand(rows, generator=generator) < torch.sigmoid(x[:, 0])).float()

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        with pyro.plate("data", len(y), subsample_size=size or None) as index:
            rows = x[index] if size else x
            logits = w @ rows.T if w.dim() == 1 else w.squeeze(-2) @ rows.T
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y[index] if size else y)

    options = {"hidden_dim": (dim, dim), "activation": "relu"} if flow.startswith("iaf") else {}

    def fit(count):
        return NFVI(
            model, lambda model: AutoFlow(model, flow, **options), "total", optim=1e-3,
            num_particles=particles, max_steps=count, stop=False, seed=0, progress=False,
            precondition=False, engine="compiled",
        ).run(x, y)  # fmt: skip

    return fit


def measure(row, seconds):
    """Fit in this process; print what was found."""
    torch.set_num_threads(1)
    fit = make(*row)
    first = fit(20)
    count = 20
    while True:
        again = fit(count)
        if again.timing.training >= seconds / 3 or count >= 20_000:
            break
        count *= 4
    steps = [1e6 * again.timing.step]
    for _ in range(FITS - 1):
        again = fit(count)
        steps.append(1e6 * again.timing.step)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timing = {key: getattr(first.timing, key) for key in ("capture", "compile")}
    print(json.dumps({"steps": steps, "count": count, "memory": memory, **timing}))


def page(found):
    parts = [
        f"`python benchmarks/engine_growth.py`: {in_words(environment())}",
        "Logistic regression with the native engine, float32: microseconds of the clock per step, "
        f"median and range of {FITS} fits; seconds to capture and compile, nothing compiled "
        "before; the largest memory of the process, of which PyTorch and Pyro alone take about "
        "400 MB.",
    ]
    header = ["Flow", "Latents", "Particles", "Rows", "Mini-batch", "Step, µs", "Capture, s"]
    for name, rows in found.items():
        lines = []
        for (flow, dim, particles, count, size), one in rows:
            steps = sorted(one["steps"])
            text = f"**{statistics.median(steps):.3g}** [{steps[0]:.3g}, {steps[-1]:.3g}]"
            line = [flow, dim, particles, count, size or "all", text]
            lines.append(
                [*line, *(f"{one[k]:.2f}" for k in ("capture", "compile")), f"{one['memory']:.0f}"]
            )
        parts.append(f"## {name}\n\n" + table([*header, "Compile, s", "Memory, MB"], lines))
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="", help="measure one row, given as JSON, in this process")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.row:
        row, seconds = json.loads(given.row)
        measure(row, seconds)
        return
    series = {name: rows[:1] for name, rows in SERIES.items()} if given.smoke else SERIES
    found = {}
    for name, rows in series.items():
        for row in rows:
            words = [sys.executable, __file__, "--row", json.dumps([row, SECONDS])]
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run(
                    words, capture_output=True, text=True, env=environ(XDG_CACHE_HOME=folder),
                    check=False,
                )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{row} failed: {done.stderr[-2000:]}")
            one = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(name, []).append((row, one))
            print(name, *row, one, flush=True)
            if not given.smoke:  # what was measured is not lost if the rest is cut short
                data = {"environment": environment(), "rows": found}
                write("engine_growth", "How the engine's cost grows", data, page(found))


if __name__ == "__main__":
    main()
