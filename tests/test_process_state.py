"""Hygiene: a call leaves the process as it was, in a fresh process, in which it runs first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("calls", [7, pytest.param(99, marks=pytest.mark.slow)])
def test_calls_leave_nothing_behind_but_their_result(calls):
    script = Path(__file__).with_name("process_state.py")
    run = subprocess.run(
        [sys.executable, str(script), str(calls)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_the_law_sees_what_a_call_leaves(monkeypatch):
    import logging
    import warnings

    from process_state import traces

    handler = logging.StreamHandler()

    def careless():
        os.environ["LEFT"] = "1"
        warnings.simplefilter("ignore")
        logging.getLogger("pyro.infer").addHandler(handler)

    monkeypatch.delenv("LEFT", raising=False)
    with warnings.catch_warnings():
        found = list(traces(careless))
    logging.getLogger("pyro.infer").removeHandler(handler)
    monkeypatch.delenv("LEFT", raising=False)
    kinds = {one.split(":")[0] for one in found}
    assert kinds == {"environment", "warning filters", "logging handlers"}
