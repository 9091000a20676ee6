"""Posteriors with two modes: a Gaussian guide, planar*16, iaf*2, and the default fit.

    python benchmarks/two_modes.py             # writes docs/benchmarks/two_modes.{md,json,png}
    python benchmarks/two_modes.py --smoke     # seconds, writes to out/benchmarks

Each posterior has two latents, so that its normalising constant and the mass of each mode are
known from a grid. The guides are trained in the same way, by Pyro's own SVI with ``Trace_ELBO``;
the default fit is ``NFVI(model).run()``.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_value

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import ROOT, environment, in_words, table, write
from pyro_nfvi import NFVI, AutoIAF, AutoPlanar
from pyro_nfvi.plots import plot_density_2d

#: The protocol, the same for every guide. The start is as wide as the posterior, between the modes:
#: a narrow start falls into one of them.
STEPS, PARTICLES, RATE, LAST_RATE, INIT_SCALE, CLIP = 2000, 256, 0.01, 0.002, 1.5, 10.0
PROTOCOL = (
    f"{STEPS} steps of `SVI` with `Trace_ELBO`, {PARTICLES} vectorised particles, and "
    f"`ClippedAdam`, learning rate {RATE} falling geometrically to {LAST_RATE}, gradients "
    f"clipped at {CLIP:g}, start at (0, 0) with `init_scale={INIT_SCALE}`"
)
DRAWS = 20_000
GRID = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64)


def sign_flip():
    """A measurement of two numbers whose common sign got lost, + three times in ten.

    Its posterior is a mixture of two Gaussians, 0.3 and 0.7 of the mass.
    """
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 4.0).to_event(1))
    means = torch.stack([z, -z], -2)
    sign = dist.Categorical(torch.tensor([0.3, 0.7]))
    near = dist.MixtureSameFamily(sign, dist.Normal(means, 0.7).to_event(1))
    pyro.sample("y", near, obs=torch.tensor([1.6, 0.8]))


def absolute_value():
    """Only |a| enters the measurement; the prior prefers positive a a little."""
    z = pyro.sample(
        "z", dist.Normal(torch.tensor([0.2, 0.0]), torch.tensor([1.5, 1.0])).to_event(1)
    )
    loc = z[..., 0].abs() + 0.5 * z[..., 1]
    pyro.sample("y", dist.Normal(loc, 0.5), obs=torch.tensor(2.0))


def product():
    """Only the product a b enters the measurements; two bent modes that touch the axes."""
    z = pyro.sample("z", dist.Normal(torch.tensor([0.15, 0.15]), 1.0).to_event(1))
    loc = (z[..., 0] * z[..., 1]).unsqueeze(-1)
    y = torch.tensor([1.2, 1.9, 1.6, 0.9, 1.4, 2.1])
    pyro.sample("y", dist.Normal(loc.expand(*loc.shape[:-1], 6), 1.0).to_event(1), obs=y)


@dataclass(frozen=True)
class Target:
    """A posterior over ``z`` in the plane, and which side of it a point is on."""

    title: str
    model: Callable[[], None]
    side: Callable[[torch.Tensor], torch.Tensor]
    #: Whether planar*16 and iaf*2 are promised to hold it (tests/guides/test_two_modes.py).
    promised: bool = True


TARGETS = {
    "sign_flip": Target("lost sign", sign_flip, lambda z: z[..., 0] > 0),
    "absolute_value": Target("absolute value", absolute_value, lambda z: z[..., 0] > 0),
    "product": Target("product", product, lambda z: z.sum(-1) > 0, promised=False),
}


def start():
    return {
        "init_loc_fn": init_to_value(values={"z": torch.zeros(2)}),
        "init_scale": INIT_SCALE,
    }


GUIDES = {
    "AutoDiagonalNormal": lambda model: AutoDiagonalNormal(model, **start()),
    "planar*16": lambda model: AutoPlanar(model, num_flows=16, **start()),
    "iaf*2": lambda model: AutoIAF(model, num_flows=2, hidden_dim=64, **start()),
}


#: The fit without settings, beside the guides.
DEFAULT = "NFVI, default"
#: Columns of the picture.
PICTURED = ("AutoDiagonalNormal", DEFAULT)


class Fitted:
    """The posterior of a fit, with the two methods that are asked of that of a guide."""

    def __init__(self, fit):
        self.fit = fit

    def sample(self, shape):
        return self.fit.sample(*shape)["z"]

    def log_prob(self, z):
        return self.fit.log_prob({"z": z})


def log_joint(target, z):
    """Log joint of points ``(N, 2)``, in nats, by running the model in a plate."""
    held = pyro.poutine.condition(target.model, data={"z": z})
    with pyro.plate("points", len(z)):
        trace = pyro.poutine.trace(held).get_trace()
    trace.compute_log_prob()
    return sum(site["log_prob"] for n, site in trace.nodes.items() if n in ("z", "y"))


def truth(target):
    """``(log evidence, mass of the side)`` from a grid."""
    points = torch.cartesian_prod(GRID, GRID)
    log_p = log_joint(target, points)
    area = 2 * math.log(float(GRID[1] - GRID[0]))
    weights = torch.softmax(log_p, 0)
    return float(torch.logsumexp(log_p, 0)) + area, float(weights[target.side(points)].sum())


def fit(target, guide_name, seed, *, steps=STEPS):
    """Train one guide, or make the default fit; return its posterior."""
    if guide_name == DEFAULT:
        return Fitted(NFVI(target.model, seed=seed, progress=False).run())
    pyro.set_rng_seed(seed)
    guide = GUIDES[guide_name](target.model)
    decay = (LAST_RATE / RATE) ** (1 / steps)
    optim = pyro.optim.ClippedAdam({"lr": RATE, "lrd": decay, "clip_norm": CLIP})
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(target.model, guide, optim, elbo)
    for _ in range(steps):
        svi.step()
    return guide.get_posterior()


@torch.no_grad()
def judge(target, posterior, log_evidence, mass):
    """KL(q || p) with its standard error in nats, and the error of the mode's mass."""
    z = posterior.sample((DRAWS,))
    log_w = log_joint(target, z) - posterior.log_prob(z)
    held = float(target.side(z).double().mean())
    return {
        "kl": log_evidence - float(log_w.mean()),
        "kl_se": float(log_w.std()) / math.sqrt(DRAWS),
        "mass": held,
        "mass_error": abs(held - mass),
    }


def run(target, guide_name, seed, exact, *, steps=STEPS):
    """Train and judge one guide in a param store of its own; return posterior and numbers."""
    with pyro.get_param_store().scope():
        began = time.process_time()
        posterior = fit(target, guide_name, seed, steps=steps)
        found = judge(target, posterior, *exact)
        found |= {"guide": guide_name, "seed": seed, "cpu_s": time.process_time() - began}
    return posterior, found


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    seeds, steps = (1, 20) if options.smoke else (options.seeds, STEPS)
    folder = ROOT / "out" / "benchmarks" if options.smoke else ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)

    results, rows, panels, promises = {}, [], {}, []
    for name, target in TARGETS.items():
        exact = truth(target)
        results[name] = {"log_evidence": exact[0], "mass": exact[1], "fits": []}
        panels[f"{target.title}: posterior"] = Density(target, exact[0])
        for guide_name in [*GUIDES, DEFAULT]:
            fits = []
            for seed in range(seeds):
                posterior, found = run(target, guide_name, seed, exact, steps=steps)
                fits.append(found)
                if seed == 0 and guide_name in PICTURED:
                    title = f"{guide_name}, KL {abs(found['kl']):.2f}" + " " * len(rows)
                    panels[title] = posterior
                print(
                    f"{name:15s} {guide_name:18s} seed {seed}: KL {found['kl']:6.3f} ± "
                    f"{found['kl_se']:.3f} nats, mass {found['mass']:.3f} (true {exact[1]:.3f}), "
                    f"{found['cpu_s']:.0f} CPU s",
                    flush=True,
                )
            results[name]["fits"] += fits
            rows.append([f"{target.title} ({exact[1]:.2f})", guide_name, *summary(fits)])
            if guide_name not in PICTURED and target.promised:
                base = [f for f in results[name]["fits"] if f["guide"] == "AutoDiagonalNormal"]
                held, text = verdict(target.title, guide_name, fits, base)
                promises.append(held)
                print(text)
    with plt.rc_context({"axes.titlesize": 13, "savefig.dpi": 160}):
        figure = plot_density_2d(panels, bounds=(-4.2, 4.2, -4.2, 4.2), columns=1 + len(PICTURED))
        figure.savefig(folder / "two_modes.png")

    env = environment()
    header = [
        "posterior (mass of the right mode)",
        "guide",
        "KL(q, p), nats",
        "mass held",
        "worst error of the mass",
        "CPU s",
    ]
    body = f"""
Three posteriors over two unknowns, each with two modes. The divergence is exact up to sampling,
since the evidence comes from a grid. {seeds} seeds each: mean (worst).

![Densities of the posterior, of AutoDiagonalNormal and of the default fit](two_modes.png)

Contours hold 50, 90 and 99 % of the mass; seed 0.

{table(header, rows)}

On the first two, `planar*16` and `iaf*2` are promised to hold both masses within 0.1 and to reach
at most half the divergence of `AutoDiagonalNormal` with every seed, which they
**{"did" if all(promises) else "did not do"}** here; a test holds them to it. The third is harder: a
guide that is trained by the ELBO alone may lose a mode, and nothing computed from its own draws can
tell. The default fit, `NFVI(model).run()`, searches for modes first.

Protocol, the same for all guides: {PROTOCOL}. `iaf*2` has `hidden_dim=64`.
{DRAWS:,} draws to judge.

{in_words(env)} Written by `benchmarks/two_modes.py`.
"""
    page = write(
        "two_modes",
        "Posteriors with two modes",
        {"environment": env, "protocol": PROTOCOL, "results": results},
        body,
        folder,
    )
    print(f"Wrote {page.relative_to(ROOT)}, two_modes.json and two_modes.png")


class Density:
    """The log density of a target, for the picture."""

    def __init__(self, target, log_evidence):
        self.target, self.log_evidence = target, log_evidence

    def log_prob(self, z):
        return log_joint(self.target, z) - self.log_evidence


def summary(fits):
    kl, errors = [f["kl"] for f in fits], [f["mass_error"] for f in fits]
    masses = [f["mass"] for f in fits]
    return [
        f"{statistics.mean(kl):.3f} ({max(kl):.3f})",
        f"{min(masses):.2f} to {max(masses):.2f}",
        f"{max(errors):.2f}",
        f"{statistics.mean(f['cpu_s'] for f in fits):.0f}",
    ]


def verdict(title, guide_name, fits, base):
    half = min(f["kl"] for f in base) / 2
    worst_kl, worst_mass = max(f["kl"] for f in fits), max(f["mass_error"] for f in fits)
    held = worst_kl <= half and worst_mass <= 0.1
    return held, (
        f"{title}, {guide_name}: KL at most {worst_kl:.3f} (promised {half:.3f}), mass off by at "
        f"most {worst_mass:.3f} (promised 0.1): {'held' if held else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
