"""The four energies of Rezende and Mohamed: reverse KL of flows, with the exact log Z on a box.

    python benchmarks/energies.py            # writes docs/benchmarks/energies.{md,json,png}
    python benchmarks/energies.py --smoke    # seconds, writes to out/benchmarks

Rows are kept in docs/benchmarks/energies.json as they come; a run that was cut off goes on.

U2 to U4 are improper (an endless strip), so all targets are held in the box |z| < 4 by a steep
wall; log Z is a sum over a grid of the same walled density.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import NFVI
from pyro_nfvi.errors import DivergedError
from pyro_nfvi.objectives import Tempered, TemperedELBO

#: Families, and the numbers of layers K.
FAMILIES = ("planar", "radial", "nice", "iaf", "nsf")
COUNTS = (2, 8, 32)
#: Adam's rate: a third of the default, at which 8 splines run away; 32 of them do so at a third.
PARTICLES, RATE, RATES = 256, 3e-3, {("nsf", 32): 1e-3}
#: Steps of a full run.
STEPS = 20_000


def wall(z):
    return 50 * F.relu(z.abs() - 4).square().sum(-1)


def bump(t, scale):
    return -0.5 * (t / scale).square()


def u1(z):
    ring = 0.5 * ((z.norm(dim=-1) - 2) / 0.4).square()
    return ring - torch.logaddexp(bump(z[..., 0] - 2, 0.6), bump(z[..., 0] + 2, 0.6))


def w1(z):
    return torch.sin(math.pi * z[..., 0] / 2)


def u2(z):
    return -bump(z[..., 1] - w1(z), 0.4)


def u3(z):
    w2 = 3 * bump(z[..., 0] - 1, 0.6).exp()
    t = z[..., 1] - w1(z)
    return -torch.logaddexp(bump(t, 0.35), bump(t + w2, 0.35))


def u4(z):
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    t = z[..., 1] - w1(z)
    return -torch.logaddexp(bump(t, 0.4), bump(t + w3, 0.35))


ENERGIES = {"U1": u1, "U2": u2, "U3": u3, "U4": u4}


def log_density(name):
    energy = ENERGIES[name]
    return lambda z: -energy(z) - wall(z)


def log_z(name):
    t = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    values = log_density(name)(torch.cartesian_prod(t, t))
    return torch.logsumexp(values, 0).item() + 2 * math.log((t[1] - t[0]).item())


def fit(name, flow, layers, steps, seed):
    """Fit a flow to an energy: ordinary Pyro, annealed, in one native loop."""
    target = log_density(name)

    def model():
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        pyro.factor("energy", target(z))

    warm = Tempered(steps=max(1, steps // 2))
    call = NFVI(
        model, f"{flow}*{layers}", TemperedELBO(warm), num_particles=PARTICLES, max_steps=steps,
        stop=False, precondition=False, explore="off", seed=seed, progress=False,
        optim=RATES.get((flow, layers), RATE),
    )  # fmt: skip
    try:
        found, gave_up = call.run(), False
    except DivergedError as error:  # the best until then is what a user has
        found, gave_up = error.fit, True
    with torch.no_grad():
        density = found.guide.density()
        z, log_q = density.rsample_and_log_prob((20_000,))
        kl = (log_q - target(z)).mean().item() + log_z(name)
    return density, kl, found, gave_up


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--most", type=int, default=32, help="largest K")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flows", nargs="+", choices=FAMILIES, help="only these")
    parser.add_argument("--fresh", action="store_true", help="fit all again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.smoke:
        options.steps, options.most, options.seeds = 20, 2, 1
    folder = ROOT / "out" / "benchmarks" if options.smoke else DOCS
    kept = folder / "energies.json"
    found = []
    if kept.exists() and not (options.fresh or options.smoke):
        found = json.loads(kept.read_text())["found"]
    families = options.flows or FAMILIES
    for layers in (count for count in COUNTS if count <= options.most):
        for flow in families:
            done = [row for row in found if (row["flow"], row["layers"]) == (flow, layers)]
            if any(row.get("steps", STEPS) == options.steps for row in done):
                continue
            found = [row for row in found if row not in done]
            row = {"flow": flow, "layers": layers, "steps": options.steps, "kl": {}}
            row["steps_per_second"] = []
            for name in ENERGIES:
                row["kl"][name] = []
                for seed in range(options.seeds):
                    _, kl, fitting, gave_up = fit(name, flow, layers, options.steps, seed)
                    row["kl"][name].append(kl)
                    row["engine"] = fitting.engine
                    row["gave_up"] = row.get("gave_up", 0) + gave_up
                    row["steps_per_second"].append(1 / fitting.timing.step)
            found.append(row)
            kls = {name: [round(kl, 3) for kl in kls] for name, kls in row["kl"].items()}
            print(f"{flow}*{layers:<3d}", row["engine"], kls, flush=True)
            report(found, options, folder)
    shown(found, options, folder / "energies.png")


def shown(found, options, path):
    """Draw the deepest of each family, its best seed, fitted again."""
    fitted, last = {}, {}
    for row in sorted(found, key=lambda row: row["layers"]):
        last[row["flow"]] = row
    for flow, row in last.items():
        for name, kls in row["kl"].items():
            best = kls.index(min(kls))
            fitted[flow, name], *_ = fit(name, flow, row["layers"], options.steps, best)
    picture(fitted, {flow: row["layers"] for flow, row in last.items()}, path)


def in_cell(kls):
    middle = f"{statistics.median(kls):.3f}"
    return middle if len(kls) == 1 else f"{middle} ({min(kls):.3f} to {max(kls):.3f})"


def stopped(row):
    """Fits of a row that did not come to their end."""
    count = row.get("gave_up", 0)
    return f" ({count} of {sum(map(len, row['kl'].values()))} fits gave up early)" if count else ""


def report(found, options, folder):
    folder.mkdir(parents=True, exist_ok=True)
    exact = {name: log_z(name) for name in ENERGIES}
    found = sorted(found, key=lambda row: (FAMILIES.index(row["flow"]), row["layers"]))
    rows = [
        [
            f"{row['flow']}\\*{row['layers']}" + stopped(row),
            *(in_cell(row["kl"][name]) for name in ENERGIES),
            f"{statistics.median(row['steps_per_second']):,.0f} ({row['engine']})",
        ]
        for row in found
    ]
    env = environment()
    seeds = f"{options.seeds} seeds: median (range)" if options.seeds > 1 else "one seed"
    body = f"""
KL(q, p) in nats, from 20,000 draws and the exact log Z of the walled density
({", ".join(f"{name} {value:.4f}" for name, value in exact.items())}). {options.steps:,} steps with
{PARTICLES} draws each, the target annealed over the first half (Rezende and Mohamed's equation 20),
rate {RATE:g} (1e-3 for 32 splines, which run away at {RATE:g}), then a cosine; a diagonal affine
map outside; {seeds}.

{table(["flow", *ENERGIES, "steps/s (engine)"], rows)}

A KL near log 2 = 0.69 at U1 means one of its two modes.

![Densities](energies.png)

Rezende and Mohamed 2015, arXiv:1505.05770, table 1 and figure 3. {in_words(env)}
`python benchmarks/energies.py` writes this page.
"""
    results = {"environment": env, "log_z": exact, "found": found}
    print(write("energies", "Four energies", results, body, folder))


def picture(fitted, last, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    t = torch.linspace(-4, 4, 160)
    x, y = torch.meshgrid(t, t, indexing="xy")
    grid = torch.stack([x, y], -1)
    columns = ["target", *(flow for flow in FAMILIES if flow in last)]
    figure, axes = pyplot.subplots(4, len(columns), figsize=(2 * len(columns), 8))
    for row, name in zip(axes, ENERGIES, strict=True):
        for axis, column in zip(row, columns, strict=True):
            with torch.no_grad():
                if column == "target":
                    shown = log_density(name)(grid).exp()
                else:
                    shown = fitted[column, name].log_prob(grid).exp()
            axis.pcolormesh(x, y, shown, rasterized=True)
            axis.set(xticks=[], yticks=[])
            if name == "U1":
                layers = "" if column == "target" else f"*{last[column]}"
                axis.set_title(column + layers, fontsize=9)
        row[0].set_ylabel(name)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
