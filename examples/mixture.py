"""A mixture of two normals whose assignments are summed out, not sampled.

NFVI enumerates discrete sites by itself; the continuous rest gets a flow. The numbers: weight and
locations of the components that made the data.
"""

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell

from pyro_nfvi import NFVI
from pyro_nfvi.plots import plot_marginals


def make_data(n=300):
    generator = torch.Generator().manual_seed(0)
    which = torch.rand(n, generator=generator) < 0.3
    noise = torch.randn(n, generator=generator)
    return torch.where(which, -2.0 + 0.7 * noise, 1.5 + noise)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    ordered = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 3.0).to_event(1), dist.transforms.OrderedTransform()
    )
    loc = pyro.sample("loc", ordered)
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[..., z], scale[..., z]), obs=y)


def main():
    run = options(__doc__, "mixture")
    y = make_data()
    steps = {"max_steps": 30} if run.smoke else {}
    fit = NFVI(mixture, seed=0, progress=not run.smoke, **steps).run(y)
    tell(fit, trust=not run.smoke)
    print(fit.summary())
    draws = fit.sample(4000, seed=1)
    mean = {name: value.mean(0) for name, value in draws.items()}
    check(
        "weight of the left one (made: 0.3)", float(mean["weights"][0]), 0.22, 0.38, smoke=run.smoke
    )
    check("its location (made: -2)", float(mean["loc"][0]), -2.3, -1.7, smoke=run.smoke)
    check("the other's location (made: 1.5)", float(mean["loc"][1]), 1.2, 1.8, smoke=run.smoke)
    plot_marginals(draws, title="A mixture of two normals").savefig(run.out / "marginals.png")
    print(f"picture: {run.out / 'marginals.png'}")


if __name__ == "__main__":
    main()
