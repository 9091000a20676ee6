"""The fast suite: what is left out of it exists, and no single test takes it over."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[1]


def test_members_of_the_slow_set_are_tests_with_others_in_the_fast_set(slow_members):
    stale, emptied = slow_members
    assert stale == []
    assert emptied == []


@pytest.mark.parametrize(("mark", "outcome"), [("", "failed"), ("@pytest.mark.slow", "passed")])
def test_a_test_that_takes_too_long_fails_unless_slow(pytester, mark, outcome):
    source = (
        (ROOT / "conftest.py").read_text("utf-8").replace("CPU_LIMIT = 25.0", "CPU_LIMIT = 0.0")
    )
    pytester.makeconftest(source)
    pytester.mkdir("tests").joinpath("slow_members.txt").write_text("", "utf-8")
    pytester.makeini("[pytest]\nmarkers = slow\n")
    pytester.makepyfile(f"import pytest\n{mark}\ndef test_one():\n    sum(range(1000))\n")
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(**{outcome: 1})
