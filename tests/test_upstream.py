"""Reports to other projects hold: a fault that is mended there is to be taken off the list."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "upstream"
if not FOLDER.is_dir():
    pytest.skip("the reports are in the repository alone", allow_module_level=True)


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


reports = module("reports")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("report", reports.REPORTS, ids=lambda one: one.__name__)
def test_the_fault_is_there(report):
    expected, found = report()
    assert found != pytest.approx(expected) if isinstance(found, float) else found != expected
    assert f"`{report.__name__}`" in (FOLDER / "index.md").read_text("utf-8")


def test_the_proposal_mends_it():
    expected, found = reports.mended_sylvester_log_det()
    assert found == pytest.approx(expected, abs=1e-5)
