"""Fits that version 0.1.0 saved load, with the numbers that they had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pyro_nfvi as nfvi

FOLDER = Path(__file__).parent / "fits_of_0_1"
#: ELBO, and log density of the guide at the first three draws, as 0.1.0 computed them.
SAVED = {
    "affine": (-6.630304216623307, [-1.5316899, -0.6493924, -0.5818141]),
    "spline": (-2.162763242006302, [14.9552841, 15.7298574, 13.0931014]),
    "mixture": (-2.20296802341938, [-2.0689609, -1.1190844, -0.9102558]),
    "student_t": (-6.634939566373825, [-1.2258954, -0.3858514, -0.6927496]),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_fit_of_0_1_loads_with_its_numbers(name, tmp_path):
    fit = nfvi.load(FOLDER / f"{name}.nfvi")
    elbo, log_q = SAVED[name]
    assert float(fit.elbo) == pytest.approx(elbo, rel=1e-6)
    found = fit.guide.density().log_prob(fit.draws.z[:3])
    assert torch.allclose(found, torch.tensor(log_q), rtol=1e-4, atol=1e-4)
    assert fit.verdict in ("good", "usable with reweighting", "do not trust")
    timing = fit.timing
    assert timing.total > timing.scoring > 0
    assert sum(timing.parts.values()) == pytest.approx(timing.total, rel=1e-9)
    fit.save(tmp_path / "again.nfvi")
    again = nfvi.load(tmp_path / "again.nfvi")
    assert torch.equal(again.draws.z, fit.draws.z)
    assert again.timing == timing
