"""``FlowEstimator`` beside scikit-learn, and tables of other libraries."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import FlowEstimator
from pyro_nfvi.distributions._tables import rows_of
from pyro_nfvi.errors import DataError, MissingPackageError, OptionError
from pyro_nfvi.flows import make_flow

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

X = np.random.RandomState(0).randn(400, 2) @ np.array([[2.0, 0.0], [3.0, 20.0]]) + [5.0, -100.0]
QUICK = {"max_steps": 150, "lr": 0.03, "random_state": 0}


@pytest.fixture(scope="module")
def estimator():
    return FlowEstimator("affine|tril", **QUICK).fit(X)


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn():
    found = check_estimator(
        FlowEstimator("affine", max_steps=5, random_state=0), on_fail=None, on_skip=None
    )
    failed = [one["check_name"] for one in found if one["status"] not in ("passed", "skipped")]
    assert failed == []
    assert len(found) > 25


def test_density_in_the_units_of_the_data(estimator):
    expected = torch.distributions.MultivariateNormal(
        torch.tensor(X.mean(0)), torch.tensor(np.cov(X.T))
    )
    log_p = expected.log_prob(torch.tensor(X)).numpy()
    assert np.abs(estimator.score_samples(X) - log_p).mean() < 0.1
    assert estimator.score(X) == pytest.approx(log_p.mean(), abs=0.05)
    assert np.allclose(
        estimator.bits_per_dim(X[:3]), -estimator.score_samples(X[:3]) / np.log(4), atol=1e-9
    )
    # The density integrates to 1 over a grid of some 6 sds.
    side = np.linspace(-6, 6, 121)
    scale, mean = estimator.scale_, estimator.mean_
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * scale + mean
    mass = np.exp(estimator.score_samples(grid)).sum() * (0.1**2) * scale.prod()
    assert mass == pytest.approx(1, abs=0.02)


def test_draws(estimator):
    drawn = estimator.sample(20_000, random_state=1)
    # Of 20,000 draws a mean is off by 0.04 sd once in 10^7; the fit leaves as much.
    assert (np.abs(drawn.mean(0) - X.mean(0)) / X.std(0)).max() < 0.1
    assert np.abs(drawn.std(0) / X.std(0) - 1).max() < 0.1
    assert np.array_equal(drawn[:5], estimator.sample(20_000, random_state=1)[:5])
    assert not np.array_equal(estimator.sample(2), estimator.sample(2))


def test_parameters_clones_and_pickles(estimator):
    again = clone(estimator)
    assert again.get_params() == estimator.get_params()
    assert not hasattr(again, "density_")
    again.set_params(max_steps=7)
    assert again.max_steps == 7
    with pytest.raises(OptionError, match="no parameter 'steps'"):
        again.set_params(steps=7)
    assert repr(again) == "FlowEstimator(flow='affine|tril', lr=0.03, max_steps=7, random_state=0)"
    back = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(back.score_samples(X[:9]), estimator.score_samples(X[:9]))


def test_the_same_seed_gives_the_same_fit():
    short = {**QUICK, "max_steps": 20}
    one, two = (FlowEstimator("affine", **short).fit(X).score(X) for _ in range(2))
    assert one == two


@pytest.mark.slow
def test_pipelines_and_searches():
    pipe = make_pipeline(StandardScaler(), FlowEstimator("affine", **{**QUICK, "max_steps": 20}))
    assert np.isfinite(pipe.fit(X).score(X))
    search = GridSearchCV(FlowEstimator(**QUICK), {"flow": ["affine", "affine|tril"]}, cv=2)
    assert search.fit(X).best_params_ == {"flow": "affine|tril"}  # columns correlate


def test_it_says_what_is_wrong():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        FlowEstimator().score(X)
    with pytest.raises(OptionError, match="Did you mean"):
        FlowEstimator("affin").fit(X)
    with pytest.raises(OptionError, match="a formula"):
        FlowEstimator(3).fit(X)
    with pytest.raises(DataError, match="constant"):
        FlowEstimator("affine", max_steps=5).fit(np.ones((20, 2)))
    with pytest.raises(ValueError, match="NaN"):
        FlowEstimator("affine").fit(np.full((20, 2), np.nan))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.utils.validation", None)
    with pytest.raises(MissingPackageError, match="pip install scikit-learn"):
        FlowEstimator("affine").fit(X)


def tables():
    """The same rows, of each library that is installed."""
    made = {"list": X.tolist(), "numpy": X}
    pandas, polars, xarray = (
        pytest.importorskip(name) if name in INSTALLED else None
        for name in ("pandas", "polars", "xarray")
    )
    if pandas is not None:
        made["pandas"] = pandas.DataFrame(X, columns=["a", "b"])
        made["nullable"] = made["pandas"].convert_dtypes()
    if polars is not None:
        made["polars"] = polars.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    if xarray is not None:
        made["xarray"] = xarray.DataArray(X, dims=("row", "column"))
        made["dataset"] = xarray.Dataset({"a": ("row", X[:, 0]), "b": ("row", X[:, 1])})
    return made


INSTALLED = [
    name
    for name in ("pandas", "polars", "xarray")
    if __import__("importlib.util").util.find_spec(name)
]


@pytest.mark.filterwarnings("ignore")
def test_tables_of_other_libraries(estimator):
    for kind, table in tables().items():
        assert torch.equal(rows_of(table), torch.tensor(X)), kind
        if kind != "dataset":
            assert np.allclose(estimator.score_samples(table), estimator.score_samples(X)), kind
        density = FlowDensity(make_flow("affine", 2)).double()
        report = density.fit(table, max_steps=2, seed=0, progress=False, valid=0)
        assert report.steps == 2, kind


@pytest.mark.parametrize("bad", [[["a", "b"]], [[1.0], [1.0, 2.0]], [[None, {}]]])
def test_tables_of_something_else(bad):
    with pytest.raises(DataError, match="numbers"):
        rows_of(bad)
