from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_nfvi import diagnostics
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.errors import OptionError, ShapeError, WeightError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_w_of_normal(num_draws, seed):
    """Z = 7 times N(0.5, 1), seen from q = N(0, 1.2^2)."""
    x = 1.2 * torch.randn(num_draws, generator=generator(seed), dtype=torch.float64)
    log_p = math.log(7) + torch.distributions.Normal(0.5, 1.0).log_prob(x)
    log_q = torch.distributions.Normal(0.0, 1.2).log_prob(x)
    return x, log_p - log_q


def test_evidence_and_its_standard_error():
    # 200 replicates of z = error/se are standard normal up to O(1/sqrt(S)): their mean is within
    # 0.3 (4.2 sd) and their sd within 0.2 of 1 (4 sd); false-alarm rate below 1e-4.
    z = []
    for seed in range(200):
        _, log_w = log_w_of_normal(2000, seed)
        value, se = diagnostics.log_evidence(log_w)
        z.append((value - math.log(7)) / se)
    assert abs(np.mean(z)) < 0.3
    assert abs(np.std(z) - 1) < 0.2


def test_evidence_of_extreme_weights():
    value, se = diagnostics.log_evidence(torch.full((10,), -5000.0))
    assert (value, se) == (-5000.0, 0.0)
    assert diagnostics.log_evidence(torch.zeros(1)) == (0.0, math.inf)
    half = torch.tensor([0.0, -math.inf])
    value, se = diagnostics.log_evidence(half)
    assert value == pytest.approx(math.log(0.5))
    assert se == pytest.approx(1.0)  # mean of (1, 0): 0.5 +- 0.5


def test_ess():
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    assert diagnostics.ess(weights.log()) == pytest.approx(1 / (0.25 + 0.125))
    assert diagnostics.ess(weights.log() + 100) == pytest.approx(1 / (0.25 + 0.125))
    with pytest.raises(WeightError):
        diagnostics.ess(torch.tensor([0.0, math.nan]))


def test_gap_is_the_divergence():
    # KL(q || p) = log(1/1.2) + (1.44 + 0.25)/2 - 1/2 in closed form; the estimate of 200,000
    # draws has a standard error of about 0.002: 0.01 is 5 of them (false-alarm rate below 1e-6).
    _, log_w = log_w_of_normal(200_000, 0)
    exact = -math.log(1.2) + (1.44 + 0.25) / 2 - 0.5
    assert iw_gap(log_w) == pytest.approx(exact, abs=0.01)
    assert iw_gap(torch.tensor([0.0, -math.inf])) == math.inf
    assert iw_gap(torch.full((3,), 0.1)) >= 0.0


def test_weighted_moments_correct_the_proposal():
    # Self-normalised estimates of mean 0.5 and sd 1 from 200,000 draws: standard errors below
    # 0.004, bounds 0.02 (false-alarm rate below 1e-6).
    x, log_w = log_w_of_normal(200_000, 1)
    log_weights = diagnostics.psis(log_w).log_weights
    assert diagnostics.weighted_mean(x, log_weights).item() == pytest.approx(0.5, abs=0.02)
    assert diagnostics.weighted_sd(x, log_weights).item() == pytest.approx(1.0, abs=0.02)
    normal = torch.distributions.Normal(0.5, 1.0)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    quantiles = diagnostics.weighted_quantile(x, log_weights, levels.tolist())
    torch.testing.assert_close(quantiles, normal.icdf(levels), atol=0.04, rtol=0)


@pytest.mark.parametrize("num_draws", [2, 5, 100])
def test_equal_weights_are_no_weights(num_draws):
    x = torch.randn(num_draws, 3, 2, generator=generator(2), dtype=torch.float64)
    log_weights = torch.full((num_draws,), -1.7, dtype=torch.float64)
    torch.testing.assert_close(diagnostics.weighted_mean(x, log_weights), x.mean(0))
    torch.testing.assert_close(diagnostics.weighted_sd(x, log_weights), x.std(0))
    levels = [0.0, 0.03, 0.5, 0.9, 1.0]
    expected = np.quantile(x.numpy(), levels, axis=0, method="hazen")
    quantiles = diagnostics.weighted_quantile(x, log_weights, levels)
    np.testing.assert_allclose(quantiles.numpy(), expected, atol=1e-12)
    assert diagnostics.weighted_quantile(x, log_weights, 0.5).shape == (3, 2)


def test_integer_weights_are_repetitions():
    x = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    times = torch.tensor([1, 3, 2])
    log_weights = times.double().log()
    repeated = x.repeat_interleave(times)
    mean = diagnostics.weighted_mean(x, log_weights)
    torch.testing.assert_close(mean, repeated.mean())
    assert diagnostics.weighted_quantile(x, log_weights, 0.5) == pytest.approx(1.6)  # by hand


def test_draws_of_weight_zero_do_not_count():
    x = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 5.0]])
    log_weights = torch.tensor([0.0, -math.inf, 0.0])
    assert diagnostics.weighted_mean(x, log_weights).tolist() == [2.0, 3.5]
    assert diagnostics.weighted_sd(x, log_weights).isfinite().all()
    assert diagnostics.weighted_quantile(x, log_weights, 1.0).tolist() == [3.0, 5.0]


def test_counts_and_booleans_have_means():
    log_weights = torch.zeros(4)
    assert diagnostics.weighted_mean(torch.tensor([0, 1, 2, 5]), log_weights).item() == 2.0
    share = diagnostics.weighted_mean(torch.tensor([True, False, True, True]), log_weights)
    assert share.item() == 0.75


def test_systematic_resampling_hits_every_count():
    weights = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64)
    for seed in range(20):
        index = diagnostics.resample(weights.log(), 1000, generator=generator(seed))
        count = torch.bincount(index, minlength=6)
        assert bool(((count - 1000 * weights).abs() <= 1).all())
        assert count[0] == count[5] == 0
    assert bool((index.diff() < 0).any()), "in random order"


def test_multinomial_resampling():
    # 10,000 independent draws of probability 0.3: 5 sd = 230 (false-alarm rate below 1e-6).
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    index = diagnostics.resample(
        weights.log(), 10_000, method="multinomial", generator=generator(3)
    )
    assert abs(int(index.sum()) - 3000) < 230


def test_resampling_repeats_with_its_generator_and_leaves_the_global_one():
    state = torch.get_rng_state()
    log_weights = torch.linspace(-1, 1, 50)
    a, b = (diagnostics.resample(log_weights, 20, generator=generator(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input():
    with pytest.raises(OptionError):
        diagnostics.resample(torch.zeros(3), 0)
    with pytest.raises(OptionError, match="systematic"):
        diagnostics.resample(torch.zeros(3), 1, method="stratified")
    with pytest.raises(OptionError, match="between 0 and 1"):
        diagnostics.weighted_quantile(torch.zeros(3), torch.zeros(3), 50)
    with pytest.raises(ShapeError, match="3 weights"):
        diagnostics.weighted_mean(torch.zeros(4), torch.zeros(3))
