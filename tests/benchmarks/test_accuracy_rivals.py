"""The posteriors in NumPyro are those in Pyro; needs NFVI_NUMPYRO, a Python that has NumPyro."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.util import site_is_subsample

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy_rivals.process import NoNumPyroError, Rival, nuts  # noqa: E402
from benchmarks.posteriordb import MODELS, load  # noqa: E402

PYTHON = os.environ.get("NFVI_NUMPYRO")
needs_numpyro = pytest.mark.skipif(not PYTHON, reason="NFVI_NUMPYRO names no Python")


def is_latent(site):
    return site["type"] == "sample" and not (site["is_observed"] or site_is_subsample(site))


@needs_numpyro
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_log_joint_is_that_of_the_pyro_model(name):
    torch.set_default_dtype(torch.float64)
    posterior = load(name)
    points, expected = [], []
    for _ in range(6):
        trace = pyro.poutine.trace(posterior.model).get_trace(**posterior.data)
        values = {n: site["value"] for n, site in trace.nodes.items() if is_latent(site)}
        points.append(values)
        expected.append(float(trace.log_prob_sum()))
    batch = {n: np.stack([np.asarray(p[n]) for p in points]) for n in points[0]}
    with Rival(PYTHON, posterior) as rival:
        found, sites = rival.log_joint(batch)
    assert sites == list(points[0])
    expected = np.array(expected)
    assert np.ptp(expected) > 1
    gap = found - expected  # a constant is no difference
    assert np.ptp(gap) < 1e-8 * np.abs(expected).max()


def test_a_python_without_numpyro_is_an_error_of_its_own():
    torch.set_default_dtype(torch.float64)
    for python in ("./no-such-python", "false"):
        with pytest.raises(NoNumPyroError, match="does not run NumPyro"):
            Rival(python, load("dogs-dogs"))


@needs_numpyro
@pytest.mark.slow
def test_nuts_ends_with_the_first_size_that_is_good_enough():
    torch.set_default_dtype(torch.float64)

    def scores_of(posterior, draws):
        assert all(np.isfinite(value.numpy()).all() for value in draws.values())
        return {"w1_over_floor": 100 / len(draws["beta"])}

    row = nuts(PYTHON, load("dogs-dogs"), scores_of, seed=0, goal=2.0, sizes=(20, 50, 80))
    assert [found["size"] for found in row["tries"]] == [20, 50]
    assert row["reached"]
    assert row["size"] == 50
    assert 0 < row["warm_cpu"] < row["cpu"]
