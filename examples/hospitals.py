"""Two thousand rates in a subsampled plate: globals and rows, fitted from mini-batches.

Deaths in 2,000 hospitals, most of them small: each has a log-odds of its own, drawn from a normal
whose mean and spread are unknown. The plate subsamples 256 hospitals, so ``NFVI`` takes a guide of
globals and rows: a Gaussian of them all and, where that is not exact enough, one flow for the two
globals and one that all hospitals share, trained on mini-batches. Draws of any hospital come on
demand. The reference is exact: given the globals the hospitals are independent, so that each is an
integral in one dimension, and the globals are a grid.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import compare, tell
from _figure import FIT, INK, REFERENCE, STYLE, WIDTH

from pyro_nfvi import NFVI


def hospitals(deaths, patients, batch=256):
    mean = pyro.sample("mean", dist.Normal(-2.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("hospitals", len(deaths), subsample_size=min(batch, len(deaths))) as rows:
        level = pyro.sample("level", dist.Normal(mean, spread))
        risk = dist.Binomial(total_count=patients[rows], logits=level)
        pyro.sample("deaths", risk, obs=deaths[rows])


def make_data(n=2000):
    generator = torch.Generator().manual_seed(11)
    sizes = torch.tensor([10.0, 20.0, 40.0, 80.0, 160.0])
    patients = sizes[torch.randint(5, (n,), generator=generator)]
    level = -2.2 + 0.6 * torch.randn(n, generator=generator)
    uniform = torch.rand(n, 160, generator=generator)
    died = uniform < level.sigmoid()[:, None]
    deaths = (died & (torch.arange(160) < patients[:, None])).sum(1).to(patients)
    return deaths, patients


def exact(deaths, patients, means=(-2.4, -2.0), spreads=(0.45, 0.8), points=60):
    """Moments of globals and rows: a grid of globals, and of each row given the globals.

    Hospitals of the same size and the same deaths have the same integral.
    """
    pairs, which, counts = torch.stack([deaths, patients], 1).unique(
        dim=0, return_inverse=True, return_counts=True
    )
    died, treated = pairs.T
    z = torch.linspace(-9.0, 9.0, 401)  # (level - mean) / spread
    weight = dist.Normal(0.0, 1.0).log_prob(z) + (z[1] - z[0]).log()
    mean = torch.linspace(*means, points)
    spread = torch.linspace(*spreads, points)
    log_p = torch.empty(points, points)
    first = torch.empty(points, points, len(pairs))
    second = torch.empty_like(first)
    for i in range(points):
        level = mean[i] + spread[:, None, None] * z  # (spread, 1, z)
        risk = dist.Binomial(total_count=treated[:, None], logits=level)
        log_row = risk.log_prob(died[:, None]) + weight  # (spread, pair, z)
        evidence = log_row.logsumexp(-1)
        share = (log_row - evidence[..., None]).exp()
        first[i], second[i] = (share * level).sum(-1), (share * level**2).sum(-1)
        log_p[i] = evidence @ counts.to(evidence)
    log_p += dist.Normal(-2.0, 1.0).log_prob(mean)[:, None] + dist.HalfNormal(1.0).log_prob(spread)
    log_p[[0, -1]] -= math.log(2)  # trapezoids
    log_p[:, [0, -1]] -= math.log(2)
    p = log_p.flatten().softmax(0).reshape(points, points)
    ends = [p[0], p[-1], p[:, -1]] + [p[:, 0]] * (spreads[0] > 0.01)  # 0 is the prior's own end
    assert torch.cat(ends).max() / p.max() < 1e-3, "the grid of globals is too small"

    def moments(m1, m2):
        return m1, (m2 - m1**2).sqrt()

    rows = [torch.einsum("ij,ijk->k", p, part)[which] for part in (first, second)]
    return {
        "mean": moments((p.sum(1) * mean).sum(), (p.sum(1) * mean**2).sum()),
        "spread": moments((p.sum(0) * spread).sum(), (p.sum(0) * spread**2).sum()),
        "level": moments(*rows),
    }


def main():
    run = options(__doc__, "hospitals")
    deaths, patients = make_data(260 if run.smoke else 2000)
    steps = 40 if run.smoke else None
    fit = NFVI(hospitals, seed=0, progress=False, max_steps=steps).run(deaths, patients)
    tell(fit)
    print(fit.report)
    if run.smoke:
        fit.sample(10, rows={"hospitals": [0, 1]})
        return

    reference = exact(deaths, patients)
    shown = torch.arange(0, len(deaths), 10)  # draws of some hospitals; all would do as well
    draws = fit.sample(4000, seed=0, rows={"hospitals": shown})
    mean, sd = reference["level"]
    reference["level"] = mean[shown], sd[shown]
    worst = compare(draws, reference, labels=("fit", "exact"))
    check("worst error of a mean, sds", worst[0], 0, 0.15, smoke=run.smoke)
    check("worst error of an sd", worst[1], 0, 0.1, smoke=run.smoke)
    print(f"picture: {draw_figure(run.out, deaths, patients, shown, draws, reference)}")


def draw_figure(out, deaths, patients, shown, draws, reference):
    """Levels beside raw rates, and the globals beside their exact moments."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(2, 1, figsize=(WIDTH, 7), layout="constrained")
        raw = deaths[shown] / patients[shown]
        rates = draws["level"].sigmoid()
        small = patients[shown] <= 20
        for part, colour, name in ((small, REFERENCE, "10 or 20"), (~small, FIT, "40 to 160")):
            left.plot(raw[part], rates.mean(0)[part], ".", color=colour, label=f"{name} patients")
        left.axline((0, 0), slope=1, color=INK, lw=0.8)
        left.set(title="Rates are drawn together, small hospitals most")
        left.set(xlabel="deaths / patients", ylabel="posterior mean of the rate")
        left.legend()
        mean, sd = reference["level"]
        right.plot(mean, draws["level"].mean(0), ".", color=FIT, label="mean")
        right.plot(sd, draws["level"].std(0), ".", color=REFERENCE, label="sd")
        right.axline((0, 0), slope=1, color=INK, lw=0.8)
        right.set(title="Log-odds of 200 hospitals", xlabel="exact", ylabel="fit")
        right.legend()
        path = out / "hospitals.png"
        figure.savefig(path)
        plt.close(figure)
    return path


if __name__ == "__main__":
    main()
