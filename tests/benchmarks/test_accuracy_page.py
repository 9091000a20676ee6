"""What the page of the accuracy benchmark counts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._accuracy_page import beside, grouped, page  # noqa: E402
from benchmarks._report import environment  # noqa: E402

TITLES = {"auto": "NFVI, default", "mvn": "A rival", "other": "Another"}
DOGS, ARK = "dogs-dogs", "arK-arK"


def fit(w1, cpu=1.0):
    return {"w1_over_floor": w1, "cpu": cpu}


def test_the_best_rival_is_beaten_within_half_a_floor_only():
    rows = {
        f"{DOGS}|auto|0": fit(1.9),
        f"{DOGS}|mvn|0": fit(1.5),
        f"{DOGS}|other|0": {"error": "no"},
        f"{ARK}|auto|0": fit(2.1),
        f"{ARK}|mvn|0": fit(8.0),
        f"{ARK}|other|0": fit(1.5),
    }
    text = "\n".join(beside(grouped(rows), TITLES))
    assert "on 1 of 2 posteriors (goal: 90 %), and the best rival's is the lower one on 2" in text
    assert "| dogs | 1.90 | 1.50 | A rival | 2 | yes |" in text
    assert "| arK | 2.10 | 1.50 | Another | 2 | **no** |" in text


def test_there_is_no_section_without_rivals():
    assert beside(grouped({f"{DOGS}|auto|0": fit(1.0)}), TITLES) == []


def test_times_of_rivals_that_were_run_at_other_times_are_not_shown():
    errors = {"max_mean_error": 0.01, "max_sd_error": 0.02}
    mine = {"khat": 0.2, "verdict": "good", "flow": "iaf*2"}
    rows = {
        f"{DOGS}|auto|0": {**fit(1.9, cpu=3.25), **errors, **mine},
        f"{DOGS}|mvn|0": {**fit(1.5, cpu=4.75), **errors},
        f"{ARK}|mvn|0": {"error": "no"},
    }
    text = page({"rows": rows, "environment": environment()}, TITLES)
    assert "| dogs | 0.01 | 0.02 | 1.9 | 0.20 | 1 good | `iaf*2` | 3.2 |" in text
    assert "| dogs | 0.01 | 0.02 | 1.5 |" in text
    assert "| arK | failed | failed | failed |" in text
    assert "4.7" not in text
    assert "4.8" not in text
