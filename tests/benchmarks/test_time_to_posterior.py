"""Time to a posterior: what is counted, what the page says, and the larger models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.util import site_is_subsample

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import time_to_posterior as bench  # noqa: E402
from benchmarks.accuracy_rivals.process import Rival  # noqa: E402
from benchmarks.time_rivals.costs import Clock  # noqa: E402
from benchmarks.time_rivals.larger_models import LARGER, load_larger  # noqa: E402
from pyro_nfvi._pyro_model.initial_values import prior_trace  # noqa: E402
from pyro_nfvi._pyro_model.latent_space import LatentSpace  # noqa: E402
from pyro_nfvi._pyro_model.log_joint import LogJoint  # noqa: E402

PYTHON = os.environ.get("NFVI_NUMPYRO")


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)  # the root's fixture takes it back


def test_time_of_children_counts():
    clock = Clock()
    busy = "import time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.3: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    found = clock.read("warm_")
    assert found["warm_cpu"] >= 0.3
    assert found["warm_seconds"] >= 0.3


def row(cpu, w1, **more):
    return {"cpu": cpu, "seconds": 2 * cpu, "w1_over_floor": w1, **more}


def test_the_page_says_what_was_measured_and_no_more():
    rows = {
        "dogs-dogs|nfvi_warm|0": row(2.0, 1.1),
        "dogs-dogs|nfvi_warm|1": row(4.0, 1.3),
        "dogs-dogs|nuts_numpyro|0": row(9.0, 1.2, warm_cpu=2.5),
        "arK-arK|nuts_numpyro|0": {"error": "RuntimeError: no"},
        "arK-arK|nfvi_warm|0": row(1.0, 1.0),
        # Alone, and at another time than the others of its posterior: beside nothing.
        "dogs-dogs|nfvi_cold|0": row(3.5, 1.1),
        "nes2000-nes|nfvi_cold|0": row(7.5, 1.1),
        "dogs-dogs|iaf_numpyro|0": row(0.5, 2.0),
    }
    text = bench.page({"rows": rows, "environment": bench.environment()})
    assert "| dogs | 3.0 (1.2) | 9.0 / 2.50 (1.2) |" in text
    assert "| arK | 1.0 (1.0) | failed |" in text
    assert "| 1 of 1 | 3.00 |" in text  # with compiling
    assert "compiling left out | 0 of 1 | 0.83 |" in text
    assert "nutpie" not in text
    assert "| dogs | 3.5 (1.1) |" in text
    assert "`NFVI().run`, cold | NumPyro" not in text
    assert "AutoIAFNormal" not in text
    assert bench.goal_of(rows, "dogs-dogs") == pytest.approx(1.2 + bench.HALF)
    assert bench.goal_of(rows, "nes2000-nes") is None


@pytest.mark.parametrize("name", LARGER)
def test_particles_of_the_larger_models_run_together(name):
    posterior = load_larger(name)
    trace = prior_trace(posterior.model, (), posterior.data)
    space = LatentSpace.from_trace(trace)
    assert LogJoint(posterior.model, (), posterior.data, space).how == "plate"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="NFVI_NUMPYRO names no Python")
@pytest.mark.parametrize("name", LARGER)
def test_larger_models_have_the_log_joint_of_numpyro(name):
    posterior = load_larger(name)
    points, expected = [], []
    for _ in range(4):
        trace = pyro.poutine.trace(posterior.model).get_trace(**posterior.data)
        latent = [
            n for n, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        ]  # fmt: skip
        points.append({n: trace.nodes[n]["value"] for n in latent})
        expected.append(float(trace.log_prob_sum()))
    batch = {n: np.stack([np.asarray(p[n]) for p in points]) for n in points[0]}
    with Rival(PYTHON, posterior) as rival:
        found, _ = rival.log_joint(batch)
    gap = np.array(found) - np.array(expected)  # a constant is no difference
    assert np.ptp(gap) < 1e-8 * np.abs(expected).max()
