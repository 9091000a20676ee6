"""The copied posteriors: complete, finite, and consistent with their reference draws."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.posteriordb import MODELS, columns, load, score  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_loads_and_reference_draws_score_their_floor(name):
    torch.set_default_dtype(torch.float64)
    posterior = load(name)
    reference = posterior.reference
    assert reference.draws.shape == (2000, len(reference.names))
    draws = {}
    for site in posterior.sites:
        index = [i for i, full in enumerate(reference.names) if full.split("[")[0] == site]
        draws[site] = reference.draws[:, index]
    scores = score(draws, reference)
    # The floor compares the same draws with the other 8,000, so this is near it, not equal.
    assert scores.max_mean_error < 2 * reference.floor["max_mean_error"] + 0.02
    assert scores.sliced_w1 < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_model_runs_and_its_density_is_finite(name):
    torch.set_default_dtype(torch.float64)
    posterior = load(name)
    trace = pyro.poutine.trace(posterior.model).get_trace(**posterior.data)
    assert set(posterior.sites) <= set(trace.nodes)
    assert np.isfinite(float(trace.log_prob_sum()))


def test_draws_that_are_not_finite_score_infinity():
    posterior = load("dogs-dogs")
    draws = {"beta": posterior.reference.draws.copy()}
    draws["beta"][3] = np.nan
    assert columns(draws, posterior.reference.names).shape == (2000, 3)
    assert score(draws, posterior.reference).max_sd_error == np.inf
