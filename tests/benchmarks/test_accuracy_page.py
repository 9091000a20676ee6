"""What the page of the accuracy benchmark counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._accuracy_page import beside, goal_of, grouped  # noqa: E402

TITLES = {"auto": "NFVI, default", "mvn": "A rival", "other": "Another", "nuts_numpyro": "NUTS"}
DOGS, ARK = "dogs-dogs", "arK-arK"


def fit(w1, cpu=1.0):
    return {"w1_over_floor": w1, "cpu": cpu}


def nuts(cpu, warm, reached=True):
    about = {"size": 500, "goal": 2.0, "divergences": 0, "reached": reached}
    return {**fit(1.9, cpu), "warm_cpu": warm, **about, "numpyro": "1", "jax": "2"}


def test_goal_is_the_median_of_ours_and_half_a_floor():
    rows = {f"{DOGS}|auto|{seed}": fit(w1) for seed, w1 in enumerate((1.0, 9.0, 1.5))}
    rows[f"{DOGS}|auto|3"] = {"error": "no"}
    assert goal_of(rows, DOGS) == pytest.approx(2.0)
    assert goal_of(rows, ARK) is None


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


def test_a_chain_that_fell_short_bounds_the_time_of_nuts_from_below():
    rows = {
        f"{DOGS}|auto|0": fit(1.5, cpu=3.0),
        f"{ARK}|auto|0": fit(1.5, cpu=3.0),
        f"{DOGS}|nuts_numpyro|0": nuts(cpu=6.0, warm=4.0, reached=False),
        f"{ARK}|nuts_numpyro|0": nuts(cpu=6.0, warm=1.5),
    }
    text = "\n".join(beside(grouped(rows), TITLES))
    assert "fewer CPU seconds on 2 of 2 posteriors" in text
    assert "and on 1 when only" in text
    assert "On 1 NUTS did not get there" in text
    assert "| dogs | 3.0 | > 6.0 | > 2 | > 4 | > 1.3 |" in text
    assert "| arK | 3.0 | 6.0 | 2 | 1.5 | 0.5 |" in text


def test_there_is_no_section_without_rivals():
    assert beside(grouped({f"{DOGS}|auto|0": fit(1.0)}), TITLES) == []
