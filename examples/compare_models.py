"""Two models of the same counts, compared by leave-one-out cross-validation in ArviZ.

The data are overdispersed; a Poisson regression and a negative binomial one are fitted, converted
with ``fit.to_arviz()`` and handed to ``az.compare``. The number: the difference in expected log
predictive density, which has to favour the negative binomial.
"""

import warnings

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell

from pyro_nfvi import NFVI
from pyro_nfvi.arviz import save_netcdf


def make_data(n=120):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, generator=generator)
    noise = 0.7 * torch.randn(n, generator=generator)
    return x, torch.poisson(torch.exp(1.0 + 0.6 * x + noise), generator=generator)


def poisson(x, y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 2.0))
    with pyro.plate("counts", len(x)):
        pyro.sample("y", dist.Poisson(torch.exp(alpha + beta * x)), obs=y)


def negative_binomial(x, y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 2.0))
    size = pyro.sample("size", dist.Gamma(2.0, 0.5))
    with pyro.plate("counts", len(x)):
        rate = torch.exp(-(alpha + beta * x)) * size
        pyro.sample("y", dist.GammaPoisson(size, rate), obs=y)


def main():
    import arviz as az

    run = options(__doc__, "compare_models")
    x, y = make_data()
    steps = 30 if run.smoke else 1000
    trees = {}
    for model in (poisson, negative_binomial):
        fit = NFVI(model, "iaf*2", max_steps=steps, seed=0, progress=not run.smoke).run(x, y)
        print(f"{model.__name__}: ELBO {fit.elbo:.1f}")
        tell(fit)
        trees[model.__name__] = fit.to_arviz()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single points with a high Pareto k, as expected
        table = az.compare(trees)
        elpd = {name: az.loo(tree) for name, tree in trees.items()}
    print(table)
    values = {
        name: float(getattr(loo, "elpd_loo", getattr(loo, "elpd", 0))) for name, loo in elpd.items()
    }
    gain = values["negative_binomial"] - values["poisson"]
    check("gain in expected log predictive density", gain, 20, 500, smoke=run.smoke)
    save_netcdf(trees["negative_binomial"], run.out / "negative_binomial.nc")
    print(f"file: {run.out / 'negative_binomial.nc'}")


if __name__ == "__main__":
    main()
