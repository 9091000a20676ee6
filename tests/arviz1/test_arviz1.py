"""The conversion under ArviZ 1: the same numbers as under ArviZ 0.2x, and what people do next.

Run by ``make test-arviz1``; skipped where ArviZ 1 or the draws are missing.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

az = pytest.importorskip("arviz")
if int(az.__version__.split(".")[0]) < 1:
    pytest.skip("this is the leg of ArviZ 1", allow_module_level=True)
DRAWS = Path(os.environ.get("NFVI_DRAWS", "out/arviz1"))
if not (DRAWS / "groups.npz").exists():
    pytest.skip(f"no draws in {DRAWS}: run make test-arviz1", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")


def read_groups(name="groups"):
    from pyro_nfvi.arviz._tree import Groups

    text = json.loads((DRAWS / f"{name}.json").read_text())
    groups = Groups(coords={dim: np.asarray(v) for dim, v in text["coords"].items()})
    with np.load(DRAWS / f"{name}.npz") as arrays:
        for key in arrays.files:
            group, name = key.split("/")
            groups.add(group, name, tuple(text["dims"][key]), arrays[key])
    for group, attrs in text["attrs"].items():
        plain = {k: np.asarray(v) if isinstance(v, list) else v for k, v in attrs.items()}
        groups.note(group, **plain)
    return groups


@pytest.fixture(scope="module")
def tree():
    from pyro_nfvi.arviz._tree import build_tree

    return build_tree(read_groups())


@pytest.fixture(scope="module")
def expected():
    return json.loads((DRAWS / "expected.json").read_text())


def test_it_is_a_datatree_with_all_groups(tree):
    import xarray

    assert isinstance(tree, xarray.DataTree)
    assert set(tree.children) == {
        "posterior", "posterior_predictive", "log_likelihood", "log_prior", "sample_stats",
        "prior", "prior_predictive", "observed_data", "constant_data",
    }  # fmt: skip
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "schools")
    assert list(tree["posterior"]["schools"].values) == list("ABCDEFGH")
    assert set(tree["sample_stats"].data_vars) == {"log_p", "log_q"}
    assert len(tree["sample_stats"].attrs["khat"]) == 2


def test_the_same_numbers_as_arviz_0(tree, expected):
    for name, mean in expected["mean"].items():
        found = tree["posterior"][name].mean(("chain", "draw")).values
        np.testing.assert_allclose(found, mean, rtol=1e-12)
    loo = az.loo(tree, pointwise=True)
    # ArviZ 1 estimates the relative efficiency and the standard error (n - 1 for n) otherwise.
    assert float(loo.elpd) == pytest.approx(expected["elpd"], abs=0.1)
    assert float(loo.se) == pytest.approx(expected["se"], rel=0.1)
    np.testing.assert_allclose(loo.pareto_k.values, expected["pareto_k"], atol=0.1)
    assert float(az.rhat(tree["posterior"].to_dataset())["mu"]) == pytest.approx(
        expected["rhat_mu"], rel=1e-6
    )


def test_loo_that_knows_of_the_approximation(tree, expected):
    stats = tree["sample_stats"]
    loo = az.loo_approximate_posterior(tree, log_p=stats["log_p"], log_q=stats["log_q"])
    assert np.isfinite(float(loo.elpd))
    # The fit is close, so taking it into account changes little.
    assert float(loo.elpd) == pytest.approx(expected["elpd"], abs=1.0)
    # pyro_nfvi.arviz.loo_approximate is the same up to the size of the tail.
    assert float(loo.elpd) == pytest.approx(sum(expected["approximate"]["elpd"]), abs=0.1)


def ours(expected, **options):
    from pyro_nfvi.arviz._elpd import Observations, elpd_data

    made = dict(expected["approximate"])
    count, dims = made.pop("num_draws"), made.pop("dims")
    arrays = {name: np.asarray(values) for name, values in made.items()}
    if options:
        arrays["pareto_k"] = None
    return elpd_data(Observations(**arrays, dims=dims), count, **options)


def test_results_of_ours_are_arvizs_own(tree, expected):
    """``az.compare``, ``print`` and ``az.plot_khat`` take them beside those of ArviZ."""
    from pyro_nfvi.arviz._elpd import terms_of

    stats = tree["sample_stats"]
    own = az.loo_approximate_posterior(
        tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True
    )
    found = ours(expected)
    assert type(found) is type(own)
    assert found.elpd_i.dims == own.elpd_i.dims
    assert float(found.p) == pytest.approx(float(own.p), abs=0.3)
    assert "Posterior approximation correction used" in str(found)
    table = az.compare({"ours": found, "own": own, "raw": tree})
    assert np.isfinite(table["elpd"].to_numpy(float)).all()
    az.plot_compare(table)
    az.plot_khat(found)
    again, count, _ = terms_of(found)
    np.testing.assert_allclose(again.log_density, expected["approximate"]["log_density"])
    assert count == expected["approximate"]["num_draws"]


def test_results_of_k_fold_are_arvizs_own(expected):
    folds = ours(expected, num_folds=4, approximate=False)
    assert "4-fold" in str(folds)
    assert folds.kind == "loo_kfold"
    assert len(az.compare({"one": folds, "two": folds})) == 2


def test_summary_and_comparison(tree):
    table = az.summary(tree, var_names=["mu", "theta"])
    assert len(table) == 9
    assert len(az.compare({"one": tree, "two": tree})) == 2


def test_pictures(tree):
    import matplotlib as mpl

    mpl.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        az.plot_forest(tree, var_names=["theta"])
        az.plot_pair(tree, var_names=["mu", "tau"])
        az.plot_ppc_dist(tree, num_samples=10)
        az.plot_dist(tree, var_names=["mu"])


def test_written_and_read_again(tree, tmp_path):
    path = tmp_path / "fit.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    again = az.from_netcdf(path)
    np.testing.assert_array_equal(again["posterior"]["theta"], tree["posterior"]["theta"])


def test_names_that_the_format_keeps_for_itself(tmp_path):
    from pyro_nfvi.arviz._tree import Groups, build_tree

    groups = Groups(coords={"rows / all": np.array(["a", "b", "c"])})
    groups.add("posterior", "y/x", ("rows / all",), np.zeros((1, 5, 3)))
    groups.add("posterior", "draw", (), np.ones((1, 5)))
    tree = build_tree(groups)
    assert tree["posterior"]["y|x"].dims == ("chain", "draw", "rows | all")
    assert list(tree["posterior"]["rows | all"].values) == ["a", "b", "c"]
    assert tree["posterior"]["draw_site"].values.sum() == 5
    assert tree["posterior"].attrs["site_of_y|x"] == "y/x"
    tree.to_netcdf(tmp_path / "names.nc", engine="h5netcdf")


def test_without_arviz_the_cure_is_named(monkeypatch):
    import builtins

    from pyro_nfvi.arviz._tree import require_arviz
    from pyro_nfvi.errors import MissingPackageError

    real = builtins.__import__

    def blocked(name, *rest, **options):
        if name == "arviz":
            raise ImportError("No module named 'arviz'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyro-nfvi\[arviz\]'"):
        require_arviz()
