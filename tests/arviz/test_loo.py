"""Leave-one-out from approximate draws equals leaving one out."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoFlow, to_arviz
from pyro_nfvi.arviz import loo_approximate
from pyro_nfvi.errors import OptionError

az = pytest.importorskip("arviz")

Y = torch.tensor([0.3, -0.8, 1.1, 0.4, 2.0, -0.2])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def predictive(rest, y):
    """Density of ``y`` given the rest, in closed form."""
    precision = len(rest) + 1 / 4
    return dist.Normal(rest.sum() / precision, (1 + 1 / precision) ** 0.5).log_prob(y)


def test_equals_leaving_one_out_though_the_draws_are_too_wide():
    """az.loo would be off by the width of the guide; the weights put it right."""
    precision = len(Y) + 1 / 4
    guide = AutoFlow(model, None, init_scale=1.4 * precision**-0.5)
    guide.setup(Y)
    with torch.no_grad():
        guide.loc.fill_(float(Y.sum() / precision) + 0.1)
    torch.manual_seed(0)
    idata = to_arviz(guide, args=(Y,), num_samples=20_000)
    exact = [float(predictive(Y[torch.arange(6) != i], Y[i])) for i in range(6)]
    loo = loo_approximate(idata)
    # Standard error of each term below 0.01 with 20,000 draws; five of them and the smoothing.
    np.testing.assert_allclose(loo.elpd_i, exact, atol=0.05)
    assert loo.elpd == pytest.approx(sum(exact), abs=0.1)
    assert loo.se == pytest.approx(6**0.5 * np.std(exact, ddof=1), rel=0.1)
    assert (loo.pareto_k < 0.7).all()
    assert 0.3 < loo.p < 2.5
    assert loo.elpd_i.dims == ("data",)
    assert not loo.warning


def test_the_result_is_that_of_arviz():
    """The type of ``az.loo``, and ``az.compare`` and the pictures take it as it is."""
    pyro.set_rng_seed(0)
    idata = to_arviz(AutoFlow(model, None, init_scale=0.4).setup(Y), args=(Y,), num_samples=400)
    other = to_arviz(AutoFlow(model, None, init_scale=0.5).setup(Y), args=(Y,), num_samples=400)
    ours, own = loo_approximate(idata), az.loo(idata, pointwise=True)
    assert type(ours) is type(own)
    assert set(own.keys()) <= set(ours.keys())
    assert "Computed from 400 posterior samples and 6 observations" in str(ours)
    table = az.compare({"ours": ours, "other": loo_approximate(other), "own": idata})
    assert np.isfinite(table["elpd_loo"].to_numpy(float)).all()
    assert float(table.loc["ours", "elpd_loo"]) == pytest.approx(ours.elpd)
    az.plot_khat(ours)
    az.plot_compare(table)
    az.plot_elpd({"ours": ours, "own": own})


def test_what_is_missing_is_said():
    draws = {"mu": torch.randn(50)}
    with pytest.raises(OptionError, match="no log_q"):
        loo_approximate(to_arviz(draws, model=model, args=(Y,)))
    with pytest.raises(OptionError, match="no group log_likelihood"):
        loo_approximate(to_arviz(draws))
    idata = to_arviz(AutoFlow(model, None).setup(Y), args=(Y,), num_samples=50)
    with pytest.raises(OptionError, match="'z'; there are y"):
        loo_approximate(idata, var_name="z")
