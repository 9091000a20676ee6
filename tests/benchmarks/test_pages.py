"""Numbers on the pages are those that the benchmarks have measured."""

import pytest

from benchmarks._report import ROOT, put
from benchmarks.pages import MARKS


@pytest.mark.parametrize(("name", "mark", "text"), MARKS)
def test_a_page_has_the_measured_numbers(name, mark, text):
    page = (ROOT / name).read_text("utf-8")
    assert page == put(page, mark, text()), "run python benchmarks/pages.py"


SCRIPTS = [
    path
    for folder in ("benchmarks", "benchmarks/vae")
    for path in sorted((ROOT / folder).glob("[!_]*.py"))
    if "__main__" in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_has_a_short_form(path):
    assert '"--smoke"' in path.read_text("utf-8"), "make bench ARGS=--smoke runs every script"
