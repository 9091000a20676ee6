"""Posteriors of odd shapes with known moments: none is called good and wrong."""

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pyro_nfvi import NFVI, Target
from pyro_nfvi._random import stream
from pyro_nfvi.infer._checks.precision import rounding
from pyro_nfvi.infer._findings import Level, SinglePrecision, find
from pyro_nfvi.infer._weighted_draws import WeighedDraws

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks.nasty_targets import NASTY, SIZES, TURN, errors, right  # noqa: E402

# Where single precision is too coarse for a target, the engine says so as well.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_nfvi.errors.EngineWarning")

#: Targets of the 61 that are good and right at seed 0, at least.
RIGHT = 48


def fitted(name, seed=0, **options):
    """A default fit, and whether its moments are right."""
    target = NASTY[name]
    fit = NFVI(Target(target.log_density, target.dim, **options), seed=seed, progress=False).run()
    z = fit.sample(100_000, seed=1)["z"].double().reshape(-1, target.dim)
    return fit, right(*errors(target, z))


def test_the_arms_of_a_banana_are_reached():
    """Without wide noise its sd is 17 % short, at a gap of 0.04 nats and an even k-hat."""
    fit, right = fitted("rosen_t5")
    assert right
    assert fit.verdict == "good"
    assert "wide noise" in fit.report


@pytest.mark.parametrize(
    "name",
    [
        "cubic",
        pytest.param("rosen_tight", marks=pytest.mark.slow),
        pytest.param("hybrid_rosen5", marks=pytest.mark.slow),
        pytest.param("five_bananas", marks=pytest.mark.slow),
        pytest.param("funnel2_2", marks=pytest.mark.slow),
        pytest.param("funnel_banana", marks=pytest.mark.slow),
        pytest.param("neal10", marks=pytest.mark.slow),
        pytest.param("sine", marks=pytest.mark.slow),
        pytest.param("squiggle", marks=pytest.mark.slow),
    ],
)
def test_a_number_that_follows_others_is_good(name):
    """Of normal numbers whose means and widths follow others, a Gaussian is exact."""
    fit, right = fitted(name)
    assert right
    assert fit.verdict == "good"
    assert "relative to others" in fit.report
    assert fit.training.settings.flow == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cubic", "hybrid_rosen5", "funnel_banana", "rosen_a3", "haario"])
def test_what_is_called_good_is_right(name):
    fit, right = fitted(name)
    assert right or fit.verdict != "good"


def test_what_single_precision_does_to_a_density_is_told():
    """Exact draws, whose weights in single precision alone say that nothing is wrong."""
    target = NASTY["gauss10_cond"]
    fit = NFVI(
        Target(target.log_density, 10),
        "affine",
        seed=0,
        max_steps=30,
        explore="off",
        progress=False,
    ).run()
    noise = torch.randn(2000, 10, generator=stream(0, "exact"), dtype=torch.float64)
    z = (noise * SIZES @ TURN.T).float()
    log_p = fit.log_joint(z)
    found = SinglePrecision(**asdict(rounding(fit.log_joint, WeighedDraws(z, log_p, log_p))))
    assert found.level is Level.DOUBT
    assert found.names
    assert "double precision" in found.sentence()
    easy = Target(lambda z: -0.5 * z.square().sum(-1), 10)
    fit = NFVI(easy, "affine", seed=0, max_steps=30, explore="off", progress=False).run()
    found = find(fit.training.findings, SinglePrecision)
    assert found.draws == 2000
    assert (found.names, found.sentence()) == ((), "")
    assert "not looked at" in SinglePrecision().sentence()


@pytest.mark.slow
def test_in_double_precision_an_ill_conditioned_gaussian_is_right():
    fit, right = fitted("gauss10_cond", dtype=torch.float64)
    assert right
    assert fit.verdict == "good"


@pytest.mark.slow
def test_of_all_none_is_good_and_wrong_and_most_are_good():
    good, wrong = [], []
    for name in NASTY:
        fit, right = fitted(name)
        if fit.verdict == "good":
            (good if right else wrong).append(name)
    assert wrong == []
    assert len(good) >= RIGHT, sorted(set(NASTY) - set(good))
