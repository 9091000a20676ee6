"""Coordinates relative to others: found where there are some, and nowhere else."""

import sys
from pathlib import Path

import pytest
import torch

from pyro_nfvi._gaussian_vi.conditional_coordinates import fit_conditional_gaussian
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks.nasty_targets import NASTY  # noqa: E402


def found(name, dtype=torch.float32, **options):
    target = NASTY[name]
    noise = stream(0, "conditional", name)
    centres = torch.randn(3, target.dim, generator=noise)
    starts = Normals.around(centres, torch.tensor([1.0, 0.1, 0.3]))
    scored = Target(target.log_density, torch.zeros(target.dim, dtype=dtype))
    gaussian = fit_gaussian(scored, starts, generator=noise)
    rows = scored.num_rows
    made = fit_conditional_gaussian(scored, gaussian, noise, **options)
    return gaussian, made, scored.num_rows - rows


@pytest.mark.parametrize(
    "name",
    [
        "rosen_tight", "rosen_a3", "haario", "five_bananas", "hybrid_rosen5", "cubic", "sine",
        "funnel2_2", "neal10", "neal100", "funnel_banana", "bent_chain4",
    ],
)  # fmt: skip
def test_what_follows_others_normally_is_exact(name):
    """Numbers whose densities given others are normal, and normal numbers that follow nothing."""
    gaussian, made, _ = found(name, whole=True)
    assert gaussian.gap > 0.1
    assert made is not None
    assert made.gaussian.gap < 0.02
    assert abs(made.gaussian.bound) < 0.02  # these densities are normalised


@pytest.mark.parametrize("name", ["t5_2", "gauss10_cond", "gumbel4", "laplace3", "logistic3"])
def test_independent_numbers_follow_nothing_and_that_is_seen_at_once(name):
    _, made, rows = found(name, torch.float64)
    assert made is None
    assert rows <= 16 * (2 * NASTY[name].dim + 1)


@pytest.mark.parametrize("name", ["donut_1", "moons", "horseshoe", "soft_cross"])
def test_what_cannot_be_exact_is_left_to_flows_at_first(name):
    assert found(name, whole=True)[1] is None


def test_a_bound_is_never_lower_than_the_plain_gaussians():
    gaussian, made, _ = found("donut_5_.3")
    assert made is None or made.gaussian.bound >= gaussian.bound
