"""A double well: the bridge that a flow leaves, and chains behind it that cross without one.

    python benchmarks/path_sampler.py            # writes docs/benchmarks/path_sampler.{md,json,png}
    python benchmarks/path_sampler.py --smoke    # seconds, writes to out/benchmarks

A RealNVP is fitted to draws of the double well by maximum likelihood; a sampler of paths puts
Metropolis moves behind the same flow. Flows trained on the density alone are shown beside them.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import DiagonalNormal, Metropolis, PathSampler
from pyro_nfvi.flows import make_flow

DRAWS = 40_000


def double_well(z):
    x, y = z.unbind(-1)
    return -0.5 * (x.square() - 4).square() - 0.5 * y.square()


def truth():
    """Log evidence and the mass between the wells, by the trapezoidal rule."""
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    mass = (-0.5 * (grid.square() - 4).square()).exp()
    log_z = (mass.sum() * (grid[1] - grid[0])).log().item() + 0.5 * math.log(2 * math.pi)
    return log_z, (mass[grid.abs() < 1].sum() / mass.sum()).item()


def exact_draws(n, generator):
    grid = torch.linspace(-5, 5, 20_001)
    cdf = (-0.5 * (grid.square() - 4).square()).exp().cumsum(0)
    x = grid[torch.searchsorted(cdf, cdf[-1] * torch.rand(n, generator=generator))]
    return torch.stack([x, torch.randn(n, generator=generator)], -1)


def measure(sampler, draws):
    with torch.no_grad():
        z, log_w = sampler.sample(draws, generator=torch.Generator().manual_seed(1))
    weights = torch.softmax(log_w, 0)
    return z, {
        "between": (z[:, 0].abs() < 1).float().mean().item(),
        "right": (z[:, 0] > 0).float().mean().item(),
        "log_evidence": torch.logsumexp(log_w, 0).item() - math.log(draws),
        "bound": log_w.mean().item(),
        "ess": (1 / weights.square().sum()).item() / draws,
    }


def wide():
    base = DiagonalNormal(2)
    with torch.no_grad():
        base.log_scale.fill_(0.7)
    return base


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps, draws = (50, 1000) if options.smoke else (2000, DRAWS)
    log_z, bridge = truth()

    data = exact_draws(10_000, torch.Generator().manual_seed(0))
    density = FlowDensity(make_flow("realnvp*4", 2))
    density.fit(data, seed=0, progress=False, max_steps=steps)
    samplers = {
        "flow, fitted to draws": PathSampler(double_well, [density.flow], base=DiagonalNormal(2)),
        "the same flow, 30 Metropolis moves": PathSampler(
            double_well,
            [density.flow, Metropolis(step_size=0.7, num_steps=30)],
            base=DiagonalNormal(2),
        ),
        "flow, trained on the density": PathSampler(
            double_well, [make_flow("realnvp*4", 2)], base=wide()
        ),
        "flow and chains, trained on the density": PathSampler(
            double_well,
            [
                make_flow("realnvp*2", 2),
                Metropolis(beta=0.1, step_size=1.0),
                make_flow("realnvp*2", 2),
                Metropolis(beta=0.5, step_size=0.5),
                Metropolis(step_size=0.5),
            ],
            base=wide(),
        ),
    }
    for name in list(samplers)[2:]:
        samplers[name].fit(steps // 2, lr=1e-2, seed=0, progress=False)
    points, found = {}, {}
    for name, sampler in samplers.items():
        points[name], found[name] = measure(sampler, draws)
        print(f"{name:42s}", {key: round(value, 4) for key, value in found[name].items()})

    folder = ROOT / "out" / "benchmarks" if options.smoke else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    picture(points, data, folder / "path_sampler.png")
    rows = [["the double well itself", f"{100 * bridge:.2f}", "0.50", f"{log_z:.3f}", "", ""]]
    rows += [
        [
            name,
            f"{100 * row['between']:.2f}",
            f"{row['right']:.2f}",
            f"{row['log_evidence']:.3f}",
            f"{row['bound']:.3f}",
            f"{row['ess']:.2f}",
        ]
        for name, row in found.items()
    ]
    header = [
        "sampler",
        "between the wells, % of draws",
        "share of the right well",
        "log evidence, by weights",
        "bound",
        "effective draws, share",
    ]
    env = environment()
    body = f"""
Target: $-\\tfrac12(x^2-4)^2 - \\tfrac12y^2$, two wells with a barrier of 8 nats. Between them means
$|x| < 1$. {draws:,} draws of each.

{table(header, rows)}

![Draws](path_sampler.png)

A flow is a homeomorphism: fitted to draws of both wells it leaves a bridge. Metropolis moves behind
it take the bridge away; the weights of the paths stay exact, so the evidence does too. Trained on
the density alone, a flow settles in one well, and its own weights cannot tell; chains at a low
`beta` between the layers find both.

{in_words(env)} `python benchmarks/path_sampler.py` writes this page.
"""
    results = {"environment": env, "log_evidence": log_z, "between": bridge, "found": found}
    page = write("path_sampler", "Paths across a double well", results, body, folder)
    print(page)


def picture(points, data, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"the double well": data, **points}
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3 * len(shown), 3.2), sharey=True)
    for axis, (name, z) in zip(axes, shown.items(), strict=True):
        axis.plot(*z[:5000].T, ".", markersize=1, alpha=0.5)
        axis.set(title=name.replace(", ", ",\n"), xlim=(-4, 4), ylim=(-4, 4), xlabel="x")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("y")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
