"""Tail indices of marginals from the density alone, against laws whose index is known.

    python benchmarks/tails.py           # writes docs/benchmarks/tails.md; some five minutes
    python benchmarks/tails.py --smoke   # seconds, prints only

First correlated multivariate Student t distributions, their tails followed from the draws of a
Gaussian; then default fits of one latent with a power tail, or with none, where quantiles and
moments are known.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import pyro
import pyro.distributions as dist
import torch

from benchmarks._report import environment, in_words, table, write
from pyro_nfvi import NFVI
from pyro_nfvi._gaussian_vi.tail_index import tail_indices
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.infer._findings import HeavyTails, find

DIMS, FREEDOMS = (1, 2, 5, 10, 20, 50), (0.7, 1.0, 2.0, 3.0, 5.0, 10.0, 25.0)
#: Prior of the one latent, and its tail index; None where every moment exists.
LATENTS = {
    "Cauchy(0, 1)": (lambda: dist.Cauchy(0.0, 1.0), 1.0),
    "HalfCauchy(1)": (lambda: dist.HalfCauchy(1.0), 1.0),
    "InverseGamma(0.5, 0.5)": (lambda: dist.InverseGamma(0.5, 0.5), 0.5),
    "Pareto(1, 1.5)": (lambda: dist.Pareto(1.0, 1.5), 1.5),
    "StudentT(3)": (lambda: dist.StudentT(3.0), 3.0),
    "Laplace(0, 1)": (lambda: dist.Laplace(0.0, 1.0), None),
    "Normal(0, 1)": (lambda: dist.Normal(0.0, 1.0), None),
    "LogNormal(0, 1)": (lambda: dist.LogNormal(0.0, 1.0), None),
    "Gamma(2, 1)": (lambda: dist.Gamma(2.0, 1.0), None),
}


def student(dim, freedom, dtype):
    """Largest relative error of both tails of all numbers, and what it took."""
    matrix = torch.full((dim, dim), 0.5, dtype=dtype) + 0.5 * torch.eye(dim, dtype=dtype)
    tril = torch.linalg.cholesky(matrix)

    def log_density(z):
        y = torch.linalg.solve_triangular(tril, (z - 3.0).T, upper=False)
        return -0.5 * (freedom + dim) * torch.log1p(y.square().sum(0) / freedom)

    torch.manual_seed(0)
    draws = 3.0 + torch.randn(2000, dim, dtype=torch.float64) @ tril.double().T
    target = Target(log_density, torch.zeros(1, dtype=dtype))
    begin = time.process_time()
    found = tail_indices(target, draws, lambda z: z, most_rows=10_000)
    return {
        "dim": dim,
        "freedom": freedom,
        "dtype": str(dtype).removeprefix("torch."),
        "error": float((found / freedom - 1).abs().max()),
        "rows": target.num_rows,
        "seconds": time.process_time() - begin,
    }


def latent(name, seed):
    """A default fit of a prior, what the verdict says of its tail, and the draws' quantiles."""
    make, index = LATENTS[name]

    def model():
        pyro.sample("x", make())
        pyro.factor("nothing", torch.zeros(()))

    begin = time.process_time()
    fit = NFVI(model, seed=seed, progress=False).run()
    seconds = time.process_time() - begin
    found = find(fit.training.findings, HeavyTails)
    exact = make().sample((1_000_000,)).double()
    draws = fit.sample(100_000, seed=1)["x"].double()
    return {
        "prior": name,
        "index": index,
        "found": found.indices[0] if found.indices else None,
        "verdict": str(fit.verdict),
        "quantiles": [float(draws.quantile(q) / exact.quantile(q)) for q in (0.99, 0.999)],
        "seconds": seconds,
        "seed": seed,
    }


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dims, freedoms = ((1, 5), (2.0,)) if args.smoke else (DIMS, FREEDOMS)
    types = (torch.float32, torch.float64)
    rows = [student(d, f, dtype) for dtype in types for d in dims for f in freedoms]
    names, seeds = (["Pareto(1, 1.5)"], (0,)) if args.smoke else (LATENTS, (0, 1, 2))
    fits = [latent(name, seed) for name in names for seed in seeds]
    lines = []
    for d in dims:
        mine = [row for row in rows if row["dim"] == d]
        worst = [
            max(100 * row["error"] for row in mine if row["dtype"] == dtype)
            for dtype in ("float32", "float64")
        ]
        cost = max(row["rows"] for row in mine), max(row["seconds"] for row in mine)
        lines.append([d, f"{worst[0]:.2g} %", f"{worst[1]:.2g} %", cost[0], f"{cost[1]:.2f}"])
    first = table(["latents", "float32", "float64", "rows", "CPU s"], lines)
    lines = []
    for name in names:
        mine = [fit for fit in fits if fit["prior"] == name]
        spread = [[f"{one['quantiles'][k]:.2f}" for one in mine] for k in (0, 1)]
        index = mine[0]["index"]
        lines.append(
            [
                name,
                "none" if index is None else index,
                ", ".join("none" if m["found"] is None else f"{m['found']:.2f}" for m in mine),
                ", ".join(sorted({m["verdict"] for m in mine})),
                ", ".join(spread[0]),
                ", ".join(spread[1]),
            ]
        )
    second = table(["latent", "index", "found", "verdict", "99 %", "99.9 %"], lines)
    env = environment()
    body = f"""
{in_words(env)}

A density that falls as $|x|^{{-(a+1)}}$ has tail index $a$: moments of lower order exist, and no
others. The verdict of a fit rests on indices that are found from the density of the model, not from
the guide's draws.

## Multivariate Student t

Correlation 0.5, centre 3, {", ".join(f"{f:g}" for f in freedoms)} degrees of freedom: the
largest error of any index, in per cent of it, with the most rows of the density and CPU seconds
that following all tails took. The draws that say where the body is are those of a Gaussian.

{first}

## Default fits

`NFVI(model).run()` of one latent without data, seeds {", ".join(map(str, seeds))}. The last
columns are quantiles of the fit's draws over the exact ones: where there is no variance, draws are
short in the far tail.

{second}

Written by `python benchmarks/tails.py`.
"""
    if args.smoke:
        print(body)
        return
    print(
        "Wrote",
        write("tails", "Tail indices", {"environment": env, "rows": rows, "fits": fits}, body),
    )


if __name__ == "__main__":
    main()
