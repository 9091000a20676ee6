"""A posterior saved here and read in another process, without the model and without the data.

The number: the largest difference between log densities computed here and there, which is 0.
"""

import subprocess
import sys

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell

from pyro_nfvi import NFVI

OTHER_PROCESS = """
import sys, torch, pyro_nfvi
torch.set_default_dtype(torch.float64)
fit = pyro_nfvi.load(sys.argv[1])
print(fit)
points = torch.load(sys.argv[2], weights_only=True)
torch.save(fit.log_prob(points), sys.argv[3])
print(fit.summary())
"""


def model(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def main():
    run = options(__doc__, "save_and_load")
    x = torch.linspace(-1, 1, 50)
    y = 0.8 * x + 0.3 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    steps = 30 if run.smoke else 800
    fit = NFVI(model, "iaf*2", max_steps=steps, seed=0, progress=not run.smoke).run(x, y)
    tell(fit)
    saved, points, scores = (run.out / name for name in ("fit.nfvi", "points.pt", "scores.pt"))
    fit.save(saved)
    draws = fit.sample(100, seed=1)
    torch.save({name: draws[name] for name in ("slope", "scale")}, points)

    command = [sys.executable, "-c", OTHER_PROCESS, str(saved), str(points), str(scores)]
    subprocess.run(command, check=True)
    difference = (torch.load(scores, weights_only=True) - fit.log_prob(draws)).abs().max()
    check("largest difference in log density", float(difference), 0, 1e-9, smoke=False)
    print(f"file: {saved}")


if __name__ == "__main__":
    main()
