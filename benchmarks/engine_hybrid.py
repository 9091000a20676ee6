"""What the hybrid engine saves where a model uses operations that have no rule.

    python benchmarks/engine_hybrid.py           # writes docs/benchmarks/engine_hybrid.md
    python benchmarks/engine_hybrid.py --smoke   # seconds, prints only

Two models that native code refuses: a curve by its Fourier coefficients, and a system of linear
differential equations by the exponential of a matrix. The engines take turns in one process.
"""

import argparse
import statistics
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import environment, in_words, table, write
from pyro_nfvi import NFVI

#: Steps of a fit with each engine.
STEPS = {"hybrid": 5000, "graph": 300, "eager": 200}
SIZE = 32


def fourier(y):
    c = pyro.sample("c", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    curve = 8 * torch.fft.irfft(torch.complex(c[..., :4], c[..., 4:]), n=SIZE)
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("n", SIZE):
        pyro.sample("y", dist.Normal(curve, scale), obs=y)


def equations(y):
    rates = pyro.sample("rates", dist.Normal(torch.zeros(3, 3), 0.5).to_event(2))
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    state = torch.linalg.matrix_exp(rates).sum(-1)
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Normal(state, scale), obs=y[:3])


MODELS = {"Fourier series, D = 9": fourier, "matrix exponential, D = 10": equations}


def seconds(model, engine, particles, steps, y):
    """Seconds of a step, and what the engine says of itself."""
    recipe = NFVI(
        model, "iaf*2", num_particles=particles, max_steps=steps, stop=False, precondition=False,
        seed=0, progress=False,
    )  # fmt: skip
    recipe.engine = engine  # a back end by its name, which users do not choose
    fit = recipe.run(y)
    return fit.timing.step, fit.engine_reason


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, prints only")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    t = torch.linspace(0, 1, SIZE)
    y = torch.sin(6 * t) + 0.1 * torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    rows, found = [], []
    for name, model in MODELS.items():
        for particles in (1, 32):
            taken, stays = {engine: [] for engine in STEPS}, ""
            for _ in range(1 if options.smoke else options.rounds):
                for engine, steps in STEPS.items():
                    count = 20 if options.smoke else steps
                    time, reason = seconds(model, engine, particles, count, y)
                    taken[engine].append(time)
                    stays = reason if engine == "hybrid" else stays
            found.append({"model": name, "particles": particles, "seconds": taken, "stays": stays})
            row = [name, str(particles), f"{1e6 * statistics.median(taken['hybrid']):.0f}"]
            for engine in ("graph", "eager"):
                ratios = sorted(a / b for a, b in zip(taken[engine], taken["hybrid"]))
                row.append(f"{statistics.median(ratios):.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}]")
            rows.append([*row, stays.split("; ")[-1].split()[0]])
            print(*rows[-1], flush=True)
    if options.smoke:
        return
    env = environment()
    header = [
        "model",
        "particles",
        "hybrid, µs",
        "graph / hybrid",
        "eager / hybrid",
        "left to PyTorch",
    ]
    body = f"""
Time of a step of `iaf*2`, medians of {options.rounds} rounds in turn; ratios within rounds,
median [range]. The last column counts the
operations that PyTorch computes in the middle of the compiled step.

{table(header, rows)}

{in_words(env)} Written by `python benchmarks/engine_hybrid.py`.
"""
    results = {"environment": env, "rows": found}
    print(write("engine_hybrid", "Models that native code does not cover", results, body))


if __name__ == "__main__":
    main()
