"""Modes that no start has met: the estimate, and what the mode search records for it."""

import pytest
import torch

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_search import search_modes
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._gaussian_vi.unseen_starts import unseen_starts
from pyro_nfvi._random import stream


@pytest.mark.parametrize("counts", [[50], [30, 20], [49, 1], [2, 2, 2]])
def test_nothing_is_unseen_where_at_most_one_mode_was_met_once(counts):
    found = unseen_starts(torch.tensor(counts), torch.zeros(len(counts)))
    assert found.share == found.unseen == 0


def test_many_modes_met_once_mean_many_more():
    found = unseen_starts(torch.ones(30, dtype=torch.long), torch.zeros(30))
    assert found.unseen == pytest.approx(435)
    assert found.share > 0.9
    assert found.chance == 1


def test_modes_without_evidence_make_no_share():
    counts = torch.tensor([40] + [1] * 30)
    found = unseen_starts(counts, torch.tensor([0.0] + [-20.0] * 30))
    assert found.share < 1e-4
    assert found.alone == 30


def test_estimate_is_right_on_average_for_equally_likely_modes():
    noise, gaps = stream(0, "species"), []
    for _ in range(300):
        counts = torch.bincount(torch.randint(100, (60,), generator=noise), minlength=100)
        counts = counts[counts > 0]
        found = unseen_starts(counts, torch.zeros(len(counts)))
        gaps.append(found.share - (1 - len(counts) / 100))
    # Shares are about 0.55, and each estimate has an sd of about 0.1.
    assert abs(sum(gaps) / len(gaps)) < 0.08


def _searched(log_density, dim):
    target = Target(log_density, torch.zeros(dim, dtype=torch.float64))
    noise = stream(0, "unseen")
    best = fit_gaussian(target, Normals.around(torch.full((1, dim), 0.5), 1.0), generator=noise)
    points = 3 * torch.randn(48, dim, generator=noise, dtype=torch.float64)
    return search_modes(target, best, points, effort=0.3, generator=noise)


def test_log_concave_density_has_nothing_unseen():
    found = _searched(lambda z: -0.5 * z.square().sum(-1), 3).unseen
    assert (found.ends, found.share, found.beyond) == (1, 0.0, 0)


def test_wells_beyond_those_that_are_kept_are_counted():
    found = _searched(lambda z: (-(z**4) + 6 * z**2).sum(-1), 6).unseen  # 64 modes
    assert found.beyond > 10
    assert found.ends > 26
