"""Tests of simulated truths: exact under the null, and they see bias and width apart."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nfvi.calibration._uniformity_tests import bias_test, width_test
from pyro_nfvi.errors import ShapeError, WeightError


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bias_pvalue_is_the_share_of_all_sign_patterns():
    # Under symmetry every pattern of signs is as likely; 2^10 of them are counted out.
    distance = torch.linspace(0.05, 0.45, 10, dtype=torch.float64)
    p = torch.where(uniform(10, seed=3) < 0.35, 0.5 - distance, 0.5 + distance)

    def statistic(p):
        points = torch.cat([p, 1 - p])
        cdf = (p[None] <= points[:, None]).double().mean(1)
        mirrored = (1 - p[None] <= points[:, None]).double().mean(1)
        return float((cdf - mirrored).abs().max())

    observed = statistic(p)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10)), dtype=torch.float64)
    share = np.mean([statistic(0.5 + s * distance) >= observed - 1e-9 for s in signs])
    assert float(bias_test(p)[0]) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("test", [bias_test, width_test])
def test_uniform_probabilities_are_rejected_at_the_stated_rate(test):
    # 4000 columns of 60: a rate of 5 % has a standard error of 0.35 points; the bias test is
    # discrete and may stay below. Above 6.7 % by chance: 1e-6.
    pvalue, _ = test(uniform(60, 4000))
    rate = float((pvalue <= 0.05).double().mean())
    assert 0.02 < rate < 0.067


def test_the_table_of_independent_samples_would_cry_wolf():
    # What the docstring says of it: 5 % are 11 %. Standard error of 4000 columns: 0.5 points.
    p = uniform(400, 4000, seed=1).numpy()
    order = np.argsort(-np.abs(p - 0.5), axis=0)
    walk = np.cumsum(np.sign(np.take_along_axis(p, order, 0) - 0.5), axis=0)
    distance = np.abs(walk).max(0) / 400
    assert 0.08 < np.mean(distance > 1.358 * np.sqrt(2 / 400)) < 0.14


def test_bias_and_width_are_told_apart():
    truth = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    p = {
        "low": normal.cdf(truth + 0.7),
        "high": normal.cdf(truth - 0.7),
        "narrow": normal.cdf(truth / 0.5),
        "wide": normal.cdf(truth / 2.0),
        "right": normal.cdf(truth),
    }
    columns = torch.stack(list(p.values()), -1)
    bias, side = bias_test(columns)
    width, sense = width_test(columns)
    assert (bias < 1e-3).tolist() == [True, True, False, False, False]
    assert side[:2].tolist() == [1.0, -1.0]
    assert (width[2:] < 1e-3).tolist() == [True, True, False]
    assert sense[2:4].tolist() == [1.0, -1.0]
    assert bias[4] > 0.05
    assert width[4] > 0.05


def test_shapes():
    bias, side = bias_test(uniform(30, 2, 3))
    assert bias.shape == side.shape == (2, 3)
    assert width_test(uniform(30))[0].shape == ()
    torch.testing.assert_close(bias[1, 2], bias_test(uniform(30, 2, 3)[:, 1, 2])[0])


def test_what_is_no_probability_is_refused():
    with pytest.raises(ShapeError, match="a row for each simulation"):
        bias_test(torch.zeros(0, 2))
    for wrong in (1.2, float("nan")):
        with pytest.raises(WeightError, match="between 0 and 1"):
            width_test(torch.tensor([0.5, wrong]))
