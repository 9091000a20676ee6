"""Fits side by side."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi
from pyro_nfvi import NFVI, compare
from pyro_nfvi.errors import MissingPackageError, ModelError, OptionError

Y = torch.tensor([1.0, 2.0, 3.0])


def model(y, width=2.0):
    scale = pyro.sample("scale", dist.Normal(0.0, width))
    place = pyro.sample("place", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(scale + place.sum(), 1.0), obs=y)


def other(y):
    model(y, width=3.0)


def fitted(guide, fitted_model=model, y=Y):
    return NFVI(fitted_model, guide, explore="off", seed=0, progress=False).run(y)


@pytest.fixture(scope="module")
def fits():
    return {name: fitted(name) for name in ("laplace", "dadvi")}


def test_a_table_of_what_each_fit_says(fits):
    table = compare(fits)
    assert [row.name for row in table] == ["laplace", "dadvi"]
    assert len(table) == 2
    for name, fit in fits.items():
        row = table[name]
        assert (row.elbo, row.elbo_se) == (fit.elbo, fit.elbo_se)
        assert (row.log_evidence, row.log_evidence_se) == fit.log_evidence()
        assert row.verdict == fit.verdict
        assert row.seconds == fit.timing.total
        assert math.isnan(row.w1)
    assert "W1" not in str(table)
    assert str(table).splitlines()[1].startswith("laplace")
    assert "<table>" in table._repr_html_()
    assert "laplace" in repr(table)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.rows = ()
    with pytest.raises(KeyError, match="none of"):
        table["flow"]


def test_distances_from_a_reference(fits):
    draws = fits["dadvi"].sample(2000, seed=1)
    table = compare(fits, reference=draws)
    assert 0 < table.w1_floor < 0.1
    assert table["dadvi"].w1 < 0.15
    chains = {name: x.reshape(4, 500, *x.shape[1:]) for name, x in draws.items()}
    assert compare(fits, chains)["dadvi"].w1 == pytest.approx(table["dadvi"].w1)
    assert compare(fits, {n: x.numpy() for n, x in draws.items()})["dadvi"].w1 > 0
    assert compare(fits, fits["dadvi"])["dadvi"].w1 < 0.15
    assert "W1 between halves" in str(table)
    moved = {**draws, "place": draws["place"] + 3 * draws["place"].std(0)}
    assert compare(fits, moved)["dadvi"].w1 > 10 * table["dadvi"].w1


@pytest.mark.slow
def test_a_reference_of_arviz(fits):
    pytest.importorskip("arviz")
    table = compare(fits, fits["laplace"].to_arviz())
    assert table["laplace"].w1 < 0.1


def test_pandas_where_it_is_installed(fits, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = compare(fits).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["laplace", "dadvi"]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        compare(fits).to_pandas()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "got an empty dict"),
        ([], "fits by name"),
        ({1: None}, "names that are strings; got 1"),
        ({"a": 3}, "'a' is a int"),
    ],
)
def test_what_is_no_table_of_fits(bad, message):
    with pytest.raises(OptionError, match=message):
        compare(bad)


def test_fits_of_other_models_and_data_are_refused(fits):
    one = fits["laplace"]
    with pytest.raises(ModelError, match="of other data"):
        compare({"a": one, "b": fitted("laplace", y=Y + 1)})
    with pytest.raises(ModelError, match="of different models: a draw has the log joint"):
        compare({"a": one, "b": fitted("laplace", other)})

    def small(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y.sum())

    with pytest.raises(ModelError, match="of different models"):
        compare({"a": one, "b": fitted("laplace", small)})


def test_references_that_do_not_fit_are_refused(fits):
    draws = fits["dadvi"].sample(10, seed=0)
    for reference, message in [
        ({"scale": draws["scale"]}, "no draws of the site 'place'"),
        ({**draws, "place": draws["place"][:, :1]}, r"expected \(N, \*s\)"),
        (3, "got int"),
        ({name: x[:1] for name, x in draws.items()}, "1 draws"),
    ]:
        with pytest.raises(OptionError, match=message):
            compare(fits, reference)


def test_it_stands_at_the_top():
    assert pyro_nfvi.compare is compare
