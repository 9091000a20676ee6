"""Density estimation: ours, Pyro's transforms and Zuko, same sizes, optimiser, steps and data.

    python benchmarks/density.py            # writes docs/benchmarks/density.{md,json,png}
    python benchmarks/density.py --smoke    # seconds, writes to out/benchmarks

Zuko changes torch when it is imported, so its models run in a process of their own: the script
calls itself with ``--peer Zuko`` for each seed. What is not installed, scikit-learn or Zuko, is
left out.
"""

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

WIDTHS, LAYERS, BATCH, RATE, EVERY = (128, 128), 3, 256, 1e-3, 50


def two_moons():
    """10,000 points of two half circles, noise 0.05; as many again to test on."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for n in (10_000, 2000, 10_000):
        angle = math.pi * torch.rand(n, generator=generator)
        other = torch.rand(n, generator=generator) < 0.5
        x = torch.where(other, 1 - angle.cos(), angle.cos())
        y = torch.where(other, 0.5 - angle.sin(), angle.sin())
        noise = 0.05 * torch.randn(n, 2, generator=generator)
        parts.append(torch.stack([x, y], -1) + noise)
    return parts


def breast_cancer():
    """scikit-learn's breast cancer measurements, 569 x 30, standardised by the training rows."""
    from sklearn.datasets import load_breast_cancer

    x = torch.as_tensor(load_breast_cancer().data, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train = x[:400]
    return [(part - train.mean(0)) / train.std(0) for part in (train, x[400:480], x[480:])]


#: Points, steps and seeds.
DATA = {"two moons": (two_moons, 2000, 10), "breast cancer": (breast_cancer, 1000, 3)}
if importlib.util.find_spec("sklearn") is None:
    print("scikit-learn is not installed: its data are left out.", file=sys.stderr)
    del DATA["breast cancer"]


def ours(dim):
    from pyro_nfvi import FlowDensity
    from pyro_nfvi.flows import make_flow

    def build(name, activation):
        flow = make_flow(f"{name}*{LAYERS}", dim, hidden_dim=WIDTHS, activation=activation)
        # Scored by the fast direction: nsf-ar turned round, as Zuko's NSF runs.
        return FlowDensity(flow.inv if name == "nsf-ar" else flow)

    return {
        "MAF": lambda: build("maf", "tanh"),
        "MAF, ReLU": lambda: build("maf", "relu"),
        "NSF": lambda: build("nsf-ar", "tanh"),
        "NSF, ReLU": lambda: build("nsf-ar", "relu"),
    }


def pyros(dim):
    import pyro.distributions.transforms as T
    from torch.distributions import Independent, Normal, TransformedDistribution

    class Density(torch.nn.Module):
        def __init__(self, make):
            super().__init__()
            self.parts = torch.nn.ModuleList(make() for _ in range(LAYERS))

        def log_prob(self, x):
            base = Independent(Normal(torch.zeros(dim), 1.0), 1)
            turn, chain = T.Permute(torch.arange(dim).flip(0)), []
            for part in self.parts:
                part.clear_cache()
                chain += [part.inv, turn]
            return TransformedDistribution(base, chain[:-1]).log_prob(x)

    widths = list(WIDTHS)
    return {
        "MAF": lambda: Density(lambda: T.affine_autoregressive(dim, hidden_dims=widths)),
        "NSF": lambda: Density(
            lambda: T.spline_autoregressive(dim, hidden_dims=widths, count_bins=8, bound=5.0)
        ),
    }


def zukos(dim):
    import zuko

    class Density(torch.nn.Module):
        def __init__(self, flow):
            super().__init__()
            self.flow = flow

        def log_prob(self, x):
            return self.flow().log_prob(x)

    options = {"transforms": LAYERS, "hidden_features": WIDTHS}
    return {
        "MAF": lambda: Density(zuko.flows.MAF(dim, 0, **options)),
        "NSF": lambda: Density(zuko.flows.NSF(dim, 0, bins=8, **options)),
    }


PEERS = {"pyro_nfvi": ours, "Pyro": pyros, "Zuko": zukos}


def train(density, parts, steps):
    """Adam on mini-batches; the test score at the best look at the validation rows."""
    data, valid, test = parts
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(density.parameters(), lr=RATE)
    best, score, spent = math.inf, math.nan, 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(data), (min(BATCH, len(data)),), generator=generator)
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = -density.log_prob(data[rows]).mean()
        loss.backward()
        optimizer.step()
        spent += time.process_time() - began
        if step % EVERY == 0:
            with torch.no_grad():
                now = -density.log_prob(valid).mean().item()
                if now < best:
                    best, score = now, -density.log_prob(test).mean().item()
    return {"nll": score, "ms_per_step": 1e3 * spent / steps}


def run(peer, name, seed, factor=1.0):
    """Fit every flow of a peer to a data set, with one seed."""
    load, steps, _ = DATA[name]
    parts = load()
    found = []
    for flow, build in PEERS[peer](parts[0].shape[-1]).items():
        torch.manual_seed(seed)
        density = build()
        row = train(density, parts, max(EVERY, int(steps * factor)))
        size = sum(p.numel() for p in density.parameters())
        about = {"data": name, "flow": flow, "peer": peer, "seed": seed, "parameters": size}
        found.append({**about, **row})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if peer == "pyro_nfvi" and name == "two moons":
            PICTURES[flow] = density
    return found


PICTURES = {}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--seeds", type=int, help="of every data set; else 10 and 3")
    parser.add_argument(
        "--peer", choices=PEERS, help="this only, JSON on stdout: with the next two"
    )
    parser.add_argument("--data", choices=DATA)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    factor = 0.05 if options.smoke else 1.0
    if options.peer:
        print(json.dumps(run(options.peer, options.data, options.seed, factor)))
        return

    from benchmarks._report import DOCS, ROOT, environment

    folder = ROOT / "out" / "benchmarks" if options.smoke else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, (_, _, seeds) in DATA.items():
        # Seed by seed, so that all are timed while the machine is in the same mood.
        for seed in range(1 if options.smoke else options.seeds or seeds):
            found += run("pyro_nfvi", name, seed, factor) + run("Pyro", name, seed, factor)
            if importlib.util.find_spec("zuko"):
                command = [sys.executable, __file__, "--peer", "Zuko", "--data", name]
                command += ["--seed", str(seed), *["--smoke"] * options.smoke]
                answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found += json.loads(answer.stdout)
            report(found, environment(), folder)


def summary(found):
    """One line for each data set, flow and peer."""
    lines, cells = [], {}
    for row in found:
        cells.setdefault((row["data"], row["flow"], row["peer"]), []).append(row)
    for (data, flow, peer), rows in sorted(cells.items()):
        nlls = torch.tensor([row["nll"] for row in rows])
        error = float(nlls.std() / len(nlls) ** 0.5) if len(nlls) > 1 else math.nan
        # Beside our net with the same activation.
        ours = cells[data, flow if "ReLU" in flow else f"{flow}, ReLU", "pyro_nfvi"]
        pairs = zip(rows, ours, strict=True)
        ratios = [row["ms_per_step"] / own["ms_per_step"] for row, own in pairs]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append([
            data, flow, peer, str(len(rows)), f"{nlls.mean():.3f} ± {error:.3f}",
            f"{nlls.min():.3f} to {nlls.max():.3f}", shown, f"{rows[0]['parameters']:,}",
        ])  # fmt: skip
    return lines


def report(found, env, folder):
    from benchmarks._report import in_words, table, write

    picture(folder / "density.png")
    header = [
        "data", "flow", "by", "seeds", "held-out NLL, nats", "range", "time of a step / ours, ReLU",
        "weights",
    ]  # fmt: skip
    steps = ", ".join(f"{name} {count}" for name, (_, count, _) in DATA.items())
    body = f"""
{LAYERS} autoregressive layers with nets of {WIDTHS[0]}-{WIDTHS[1]}, orders reversed in turn;
Adam at {RATE:g}, batches of {BATCH}; steps: {steps}
(two moons: 10,000 points, noise 0.05; breast cancer: 400 rows of 30 numbers, standardised). Test
score at the best of the looks at validation rows every {EVERY} steps: mean over seeds ± its
standard error. NSF has 8 bins on [-5, 5]. The peers' nets have ReLU; ours have tanh by default, and
ReLU with `activation="relu"`. Pyro's splines are rational-linear, since its helper for the
quadratic ones raises an error. The same loop drives all; CPU time of forward, backward and update,
pair by pair with ours of the same seed: median (range).

{table(header, summary(found))}

![Two moons: the densities of ours](density.png)

{in_words(env)} `python benchmarks/density.py` writes this page.
"""
    print(
        write("density", "Density estimation", {"environment": env, "found": found}, body, folder)
    )


def picture(path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x, y = torch.meshgrid(
        torch.linspace(-1.5, 2.5, 200), torch.linspace(-1, 1.5, 150), indexing="xy"
    )
    grid = torch.stack([x, y], -1)
    figure, axes = pyplot.subplots(1, len(PICTURES) + 1, figsize=(10, 2.8), sharey=True)
    axes[0].plot(*two_moons()[0][:3000].T, ".", markersize=1)
    axes[0].set(title="data", xlim=(-1.5, 2.5), ylim=(-1, 1.5))
    for axis, (name, density) in zip(axes[1:], PICTURES.items(), strict=True):
        with torch.no_grad():
            axis.pcolormesh(x, y, density.log_prob(grid).exp(), rasterized=True)
        axis.set(title=name)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
