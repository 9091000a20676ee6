"""Numbers on the pages are those that the benchmarks have measured."""

import pytest

from benchmarks._report import ROOT, put
from benchmarks.pages import MARKS


@pytest.mark.parametrize(("name", "mark", "text"), MARKS)
def test_a_page_has_the_measured_numbers(name, mark, text):
    page = (ROOT / name).read_text("utf-8")
    assert page == put(page, mark, text()), "run python benchmarks/pages.py"
