"""The groups ``predictions`` and ``predictions_constant_data``, and LOO with corrected draws."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi.arviz import loo_approximate
from pyro_nfvi.errors import OptionError

az = pytest.importorskip("arviz")

X = torch.linspace(-1, 1, 20)
Y = 1 + 2 * X + 0.3 * torch.randn(20, generator=torch.Generator().manual_seed(0))
NEW = torch.tensor([10.0, 20.0, 30.0])


def line(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        mean = pyro.deterministic("mean", a + b * x)
        pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


@pytest.fixture(scope="module")
def fit():
    return nfvi.NFVI(line, "affine", max_steps=60, explore="off", seed=0, progress=False).run(X, Y)


@pytest.mark.parametrize("asked", [(NEW,), {"x": NEW}, (NEW, torch.zeros(3))])
def test_predictions_at_the_draws_of_the_posterior(fit, asked):
    idata = fit.to_arviz(num_samples=60, predictions=asked)
    group, posterior = idata["predictions"], idata["posterior"]
    assert dict(group["y"].sizes) == {"chain": 1, "draw": 60, "rows": 3}
    assert dict(idata["posterior_predictive"]["y"].sizes)["rows"] == 20
    expected = posterior["a"].values[..., None] + posterior["b"].values[..., None] * NEW.numpy()
    np.testing.assert_allclose(group["mean"].values, expected, rtol=1e-4)
    constant = idata["predictions_constant_data"]
    assert sorted(constant.data_vars) == ["x"]
    np.testing.assert_array_equal(constant["x"].values, NEW.numpy())


def test_what_predict_returned_and_chains(fit):
    predicted = fit.predict(NEW, num_samples=7, seed=0)
    idata = nfvi.to_arviz([fit, fit], num_samples=20, predictions=predicted)
    np.testing.assert_array_equal(idata["predictions"]["y"].values[0], predicted["y"].numpy())
    both = nfvi.to_arviz([fit, fit], num_samples=20, predictions=(NEW,))
    assert both["predictions"]["y"].shape == (2, 20, 3)


def test_what_predictions_may_be(fit):
    with pytest.raises(OptionError, match="a tuple of the model's positional"):
        fit.to_arviz(num_samples=5, predictions=NEW)
    with pytest.raises(OptionError, match="needs the model"):
        nfvi.to_arviz({"a": torch.zeros(5)}, predictions=(NEW,))


def test_attributes_say_whether_draws_are_corrected(fit):
    plain = fit.to_arviz(num_samples=50)
    assert "not corrected" in plain["posterior"].attrs["draws"]
    assert "loo_approximate" in plain["log_likelihood"].attrs["loo"]
    weighed = fit.to_arviz(num_samples=50, reweighted=True)
    assert "resampled" in weighed["posterior"].attrs["draws"]
    assert "as they are" in weighed["log_likelihood"].attrs["loo"]
    exact = nfvi.to_arviz({"a": torch.zeros(9), "b": torch.zeros(9)}, model=line, args=(X, Y))
    assert "draws" not in exact["posterior"].attrs


def test_compare_takes_corrected_loo(fit):
    """A guide twice too wide: az.loo believes it, the corrected one gives the exact answer."""
    wide = nfvi.NFVI(
        line,
        lambda model: nfvi.AutoFlow(model, None, init_scale=0.3),
        max_steps=1,
        explore="off",
        seed=0,
        progress=False,
    ).run(X, Y)
    exact = 0.0
    design = torch.stack([torch.ones(20), X], -1).double()
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        precision = design[rest].T @ design[rest] / 0.09 + torch.eye(2).double() / 25
        mean = torch.linalg.solve(precision, design[rest].T @ Y[rest].double() / 0.09)
        spread = (0.09 + design[i] @ torch.linalg.solve(precision, design[i])).sqrt()
        exact += float(dist.Normal(design[i] @ mean, spread).log_prob(Y[i].double()))
    results = {}
    for name, one in (("fit", fit), ("wide", wide)):
        loo = loo_approximate(one.to_arviz(num_samples=4000))
        assert loo.elpd == pytest.approx(exact, abs=0.35)
        results[name] = loo
    table = az.compare(results)
    assert sorted(table.index) == ["fit", "wide"]
