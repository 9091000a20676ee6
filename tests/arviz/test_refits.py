"""Cross-validation by refits against closed forms, as ArviZ's own results."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, FitSpec
from pyro_nfvi.arviz import loo_approximate, loo_kfold, reloo
from pyro_nfvi.errors import OptionError

az = pytest.importorskip("arviz")
Y = torch.tensor([0.3, -0.8, 1.1, 0.4, 9.0])
QUICK = {"guide": "affine", "max_steps": 150, "engine": "eager", "explore": "off"}
HERE = {"num_workers": 1, "progress": False}


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def predictive(rest, y):
    precision = len(rest) + 1 / 25
    return float(dist.Normal(rest.sum() / precision, (1 + 1 / precision) ** 0.5).log_prob(y))


EXACT = [predictive(Y[torch.arange(5) != i], Y[i]) for i in range(5)]


@pytest.fixture(scope="module")
def loo():
    fit = NFVI(model, seed=0, progress=False, **QUICK).run(Y)
    return loo_approximate(fit.to_arviz(num_samples=2000))


def test_only_what_weights_get_wrong_is_refitted(loo):
    bad = loo.pareto_k.values > loo.good_k
    assert bad[4]
    assert not bad.all()
    found = reloo(FitSpec(model, (Y,), options=QUICK), loo, **HERE)
    assert type(found) is type(loo)
    np.testing.assert_array_equal(found.elpd_i.values[~bad], loo.elpd_i.values[~bad])
    assert abs(loo.elpd_i.values[4] - EXACT[4]) > 0.5
    # A predictive density in the tail, from 2000 draws of posterior sd 0.5: standard error 0.1.
    assert found.elpd_i.values[4] == pytest.approx(EXACT[4], abs=0.5)
    assert found.pareto_k.values[4] == 0
    assert found.elpd_i.dims == ("rows",)
    assert found.elpd + found.p == pytest.approx(loo.elpd + loo.p, abs=1e-3)
    assert len(az.compare({"refitted": found, "plain": loo})) == 2
    none = reloo(FitSpec(model, (Y,)), loo, threshold=9.0, **HERE)
    np.testing.assert_array_equal(none.elpd_i.values, loo.elpd_i.values)


def test_k_fold_is_that_of_the_table_and_of_arviz(loo):
    found = loo_kfold(FitSpec(model, (Y,), options=QUICK), 2, **HERE)
    folds = FitSpec(model, (Y,), options=QUICK).k_fold(2)
    exact = np.zeros(5)
    for one in folds:
        rest, index = one.args[0], one.held_out.index
        for i in index.tolist():
            exact[i] = predictive(rest, Y[i])
    np.testing.assert_allclose(found.elpd_i.values[:4], exact[:4], atol=0.1)
    assert found.n_folds == 2
    full = [dist.Normal(Y.sum() / 5.04, (1 + 1 / 5.04) ** 0.5).log_prob(y) for y in Y]
    assert found.p == pytest.approx(float(sum(full)) - found.elpd, abs=0.1)
    str(found)
    assert len(az.compare({"folds": found, "loo": found})) == 2


def test_every_row_is_left_out_without_a_result_to_mend():
    y = Y[:3]
    found = reloo(FitSpec(model, (y,), options=QUICK), **HERE)
    exact = [predictive(y[torch.arange(3) != i], y[i]) for i in range(3)]
    np.testing.assert_allclose(found.elpd_i.values, exact, atol=0.05)
    assert (found.pareto_k.values == 0).all()


def test_what_cannot_be_refitted_is_said(loo):
    with pytest.raises(OptionError, match="Refits need a FitSpec.*got function"):
        loo_kfold(model)
    with pytest.raises(OptionError, match="each of the 3 rows of the data; it has 5"):
        reloo(FitSpec(model, (Y[:3],)), loo)
    with pytest.raises(OptionError, match="result of loo_approximate.*got dict"):
        reloo(FitSpec(model, (Y,)), {})
    with pytest.raises(OptionError, match="Did you mean num_folds"):
        loo_kfold(FitSpec(model, (Y,)), num_fold=2)

    def two(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            pyro.sample("z", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(OptionError, match=r"sites of a row together \(y, z\)"):
        reloo(FitSpec(two, (Y,)), loo)
