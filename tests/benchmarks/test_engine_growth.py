"""The growth benchmark writes a page from what it measures."""

import shutil

import pytest

from benchmarks import engine_growth


def test_every_row_is_on_the_page():
    one = {"steps": [3.0, 1.0, 2.0], "capture": 0.1, "compile": 2.0, "memory": 400.0}
    found = {name: [(row, one) for row in rows] for name, rows in engine_growth.SERIES.items()}
    text = engine_growth.page(found)
    assert text.count("**2** [1, 3]") == sum(map(len, engine_growth.SERIES.values()))
    assert "| iaf*2 | 25 | 8 | 1000000 | 256 |" in text


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
def test_a_row_is_a_model_that_the_native_engine_fits():
    fit = engine_growth.make("iaf*2", 4, 2, 50, 10)(20)
    assert len(fit.losses) == 20
