"""Every term of the log joint is a variable of log_likelihood or log_prior, or is named."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import HaarReparam, LocScaleReparam, SplitReparam

from pyro_nfvi import AutoIAF, to_arviz
from pyro_nfvi.arviz import loo_approximate
from pyro_nfvi.errors import ConversionWarning, OptionError

az = pytest.importorskip("arviz")
Y = torch.tensor([1.0, 2.0, 3.0, 2.5])


def simple(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def censored(y):
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("deaths", len(y)):
        pyro.sample("t", dist.Exponential(rate), obs=y)
    with pyro.plate("alive", 2):
        pyro.factor("survival", -rate * torch.tensor([1.0, 4.0]))


def hierarchy(y):
    mu, sd = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("sd", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=y > 1.5):
        b = pyro.sample("b", dist.Normal(mu, sd))
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


@poutine.reparam(
    config={"b": LocScaleReparam(0.0), "v": HaarReparam(dim=-1), "w": SplitReparam([1, 1], -1)}
)
def reparameterised(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        b = pyro.sample("b", dist.Normal(mu, 1.0))
        both = (v + w).sum(-1, keepdim=True)
        pyro.sample("y", dist.Normal(b + both, 1.0), obs=y)


def mixture(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)


def missing(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=y > 1.5)


def convert(model, *args, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoIAF(model).setup(*args)
    return to_arviz(guide, args=args, num_samples=20, **options)


def total(idata, group):
    """Sum of all terms of a group, for each draw."""
    return sum(v.values.reshape(20, -1).sum(-1) for v in idata[group].data_vars.values())


@pytest.mark.parametrize("model", [simple, censored, hierarchy, reparameterised, mixture, missing])
def test_the_groups_sum_up_to_the_log_joint(model):
    idata = convert(model, Y)
    found = total(idata, "log_likelihood") + total(idata, "log_prior")
    np.testing.assert_allclose(found, idata["sample_stats"]["log_p"].values[0], rtol=1e-4)
    assert not any(key.startswith("missing_log") for key in idata["posterior"].attrs)


def test_the_terms_of_each_group():
    idata = convert(censored, Y)
    assert set(idata["log_likelihood"].data_vars) == {"t", "survival"}
    assert idata["log_likelihood"]["survival"].dims == ("chain", "draw", "alive")
    assert set(idata["log_prior"].data_vars) == {"rate"}


def test_a_factor_without_a_plate_is_named_unless_told():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.factor("penalty", -mu.abs())
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(ConversionWarning, match=r"factor 'penalty' lies in no plate.*likelihood="):
        idata = convert(model, Y)
    assert set(idata["log_likelihood"].data_vars) == {"y"}
    assert set(convert(model, Y, likelihood=["y"])["log_likelihood"].data_vars) == {"y"}
    both = convert(model, Y, likelihood=["y", "penalty"])
    assert set(both["log_likelihood"].data_vars) == {"y", "penalty"}
    with pytest.raises(OptionError, match="likelihood names 'z'.*there are y, penalty"):
        convert(model, Y, likelihood=["z"])


def test_what_cannot_be_split_is_named_and_the_rest_stays():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            x = pyro.sample("x", dist.Normal(mu + k, 1.0))
            pyro.sample("a", dist.Normal(k, 1.0), obs=y)
            pyro.sample("b", dist.Normal(k - mu, 1.0), obs=y)
            pyro.sample("c", dist.Normal(x, 1.0), obs=y)

    with (
        pytest.warns(ConversionWarning, match="'a' cannot be split.*'b' cannot be split"),
        pytest.warns(ConversionWarning, match="no log_prior, or not all of it: .*'x' depends on"),
    ):
        idata = convert(model, Y)
    assert set(idata["log_likelihood"].data_vars) == {"c"}
    assert set(idata["log_prior"].data_vars) == {"mu"}
    assert "'x' depends on a discrete site" in idata["posterior"].attrs["missing_log_prior"]


def test_a_scale_is_left_out_told_and_taken_by_loo():
    def scaled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(ConversionWarning, match=r"'y' is under poutine.scale\(scale=0.5\)"):
        idata = convert(scaled, Y)
    assert idata["log_likelihood"].attrs["scale_of_y"] == 0.5
    plain = dist.Normal(torch.as_tensor(idata["posterior"]["mu"].values)[..., None], 1.0)
    np.testing.assert_allclose(
        idata["log_likelihood"]["y"].values, plain.log_prob(Y).numpy(), rtol=1e-4, atol=1e-5
    )
    whole = total(idata, "log_prior") + 0.5 * total(idata, "log_likelihood")
    np.testing.assert_allclose(whole, idata["sample_stats"]["log_p"].values[0], rtol=1e-4)


def test_leave_one_out_of_a_power_likelihood_is_exact():
    """Normal data, known variance, likelihood to the power s: all densities are normal."""
    s, prior = 0.5, 1 / 100.0

    def scaled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)), poutine.scale(scale=s):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    precision = prior + s * len(Y)
    pyro.set_rng_seed(0)
    draws = {"mu": dist.Normal(s * Y.sum() / precision, precision**-0.5).sample((20_000,))}
    with pytest.warns(ConversionWarning, match="under poutine.scale"):
        idata = to_arviz(draws, model=scaled, args=(Y,))
    log_q = dist.Normal(s * Y.sum() / precision, precision**-0.5).log_prob(draws["mu"])
    idata["sample_stats"]["log_q"] = (("chain", "draw"), log_q[None].numpy())
    found = loo_approximate(idata)
    rest = precision - s
    exact = [
        float(dist.Normal(s * (Y.sum() - one) / rest, (1 + 1 / rest) ** 0.5).log_prob(one))
        for one in Y
    ]
    # 20,000 draws: standard errors of a few thousandths.
    np.testing.assert_allclose(found.elpd_i, exact, atol=0.03)


def test_a_mini_batch_is_not_a_scale_of_the_user():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.warns(ConversionWarning, match="one mini-batch, 2 of the"):
        idata = convert(model, Y)
    assert "scale_of_y" not in idata["log_likelihood"].attrs


def test_power_scaling_runs():
    idata = convert(simple, Y)
    sensitivity = getattr(az, "psense", None) or az.psens
    assert np.isfinite(float(sensitivity(idata)["mu"]))
