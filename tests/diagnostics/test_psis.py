from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from pyro_nfvi.diagnostics import psis
from pyro_nfvi.diagnostics._psis import khat_threshold
from pyro_nfvi.errors import OptionError, ShapeError, WeightError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_draws", [30, 100, 1000, 10_000])
@pytest.mark.parametrize("spread", [0.01, 0.5, 1.0, 2.0, 5.0, 30.0, 500.0])
def test_equals_arviz(num_draws, spread):
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1 has no psislw at the top")
    log_w = spread * torch.randn(num_draws, generator=generator(), dtype=torch.float64) + 17
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, expected_khat = arviz.psislw(log_w.numpy().copy())
    log_weights, khat = psis(log_w)
    assert khat == pytest.approx(float(expected_khat), abs=1e-10, rel=1e-10)
    np.testing.assert_allclose(log_weights.numpy(), np.asarray(expected), atol=1e-10)


@pytest.mark.parametrize("shape", [-0.5, 0.2, 0.5, 0.7, 1.0, 1.5])
def test_recovers_a_known_tail(shape):
    # Quantile function of a generalised Pareto distribution of this shape, on uniform noise.
    # 40 replicates with 300 tail draws: the standard error of the mean khat is at most
    # (1 + shape)/sqrt(300 * 40) < 0.023, and the weak prior moves it by 10/310 * |0.5 - shape|,
    # which is taken off. A miss by 5 standard errors (plus 0.02 for the estimator's own bias)
    # has a false-alarm rate below 1e-6.
    tails = []
    for seed in range(40):
        noise = torch.rand(10_000, generator=generator(seed), dtype=torch.float64)
        weights = 1 + torch.expm1(-shape * torch.log1p(-noise)) / shape
        tails.append(psis(weights.log()).khat)
    unpriored = (np.mean(tails) * 310 - 5) / 300
    assert unpriored == pytest.approx(shape, abs=5 * (1 + max(shape, 0)) / math.sqrt(12_000) + 0.02)


def test_normal_proposal_too_narrow_and_too_wide():
    # p = N(0, 1), q = N(0, s^2) with s < 1: w has the Pareto tail 1 - s^2 exactly (up to logs),
    # approached slowly, hence the wide margins: sd of khat is about 0.09 at 424 tail draws, and
    # both bounds lie more than 4 sd away (false-alarm rate below 1e-4; the seed is fixed).
    x = torch.randn(20_000, generator=generator(1), dtype=torch.float64)
    narrow, wide = 0.5, 1.3
    log_w = {s: -0.5 * (s * x) ** 2 + 0.5 * x**2 for s in (narrow, wide)}
    assert 0.45 < psis(log_w[narrow]).khat < 1.1
    assert psis(log_w[wide]).khat < 0.3


def test_normalised_ordered_and_never_above_the_largest_raw_weight():
    log_w = 3 * torch.randn(2000, generator=generator(2), dtype=torch.float64)
    smoothed, khat = psis(log_w)
    assert smoothed.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert bool((smoothed[log_w.argsort()].diff() >= -1e-12).all())
    bulk = log_w.argsort()[:100]
    shift = (smoothed - log_w)[bulk]
    assert shift.std().item() < 1e-10, "draws below the tail only shift together"
    assert bool((smoothed - shift[0] <= log_w.max() + 1e-9).all())
    assert math.isfinite(khat)


def test_constant_added_to_log_weights_does_not_matter():
    log_w = torch.randn(500, generator=generator(3), dtype=torch.float64)
    a, b = psis(log_w), psis(log_w - 1e4)
    assert a.khat == pytest.approx(b.khat, abs=1e-6)
    torch.testing.assert_close(a.log_weights, b.log_weights, atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_draws", [25, 1000])
@pytest.mark.parametrize("noise", [0.0, 1e-13])
def test_constant_weights_have_no_tail(num_draws, noise):
    log_w = -40 + noise * torch.randn(num_draws, generator=generator(4), dtype=torch.float64)
    log_weights, khat = psis(log_w)
    assert khat == 0.0
    torch.testing.assert_close(log_weights.exp(), torch.full_like(log_w, 1 / num_draws))


def test_float32_rounding_counts_as_constant_and_dtype_is_kept():
    log_w = -3000 + 2e-4 * torch.randn(1000, generator=generator(5))
    log_weights, khat = psis(log_w)
    assert khat == 0.0
    assert log_weights.dtype == torch.float32
    wide = torch.randn(1000, generator=generator(5))
    assert psis(wide).khat == pytest.approx(psis(wide.double()).khat, abs=1e-3)


@pytest.mark.parametrize("num_draws", [1, 2, 20])
def test_too_few_draws_are_not_trusted(num_draws):
    log_w = torch.linspace(0, 1, num_draws)
    log_weights, khat = psis(log_w)
    assert khat == math.inf
    torch.testing.assert_close(log_weights, torch.log_softmax(log_w, 0))


def test_equality_by_coarse_rounding_is_not_trusted():
    """At 1e7 nats neighbouring float32 numbers are one nat apart."""
    noise = torch.randint(0, 2, (2000,), generator=generator()).float()
    assert psis(1e7 + noise).khat == math.inf
    assert psis(1e3 + 1e-4 * noise).khat == 0.0


def test_one_bad_draw_does_not_hide_the_tail():
    log_w = 2 * torch.randn(2000, generator=generator())
    clean = psis(log_w).khat
    log_w[7] = -1e7
    assert psis(log_w).khat == pytest.approx(clean, abs=0.05)


def test_a_handful_of_giants_is_not_trusted():
    log_w = torch.zeros(1000, dtype=torch.float64)
    log_w[:3] = torch.tensor([50.0, 60.0, 70.0], dtype=torch.float64)
    assert psis(log_w).khat == math.inf
    log_w = torch.randn(1000, generator=generator(6), dtype=torch.float64)
    log_w[0] = 2000.0
    assert psis(log_w).khat == math.inf


def test_zero_weights_stay_zero_and_count_as_draws():
    log_w = torch.randn(1000, generator=generator(7), dtype=torch.float64)
    log_w[::2] = -math.inf
    log_weights, khat = psis(log_w)
    assert math.isfinite(khat)
    assert bool((log_weights[::2] == -math.inf).all())
    assert log_weights.exp().sum().item() == pytest.approx(1)
    mostly = torch.full((1000,), -math.inf, dtype=torch.float64)
    mostly[:30] = torch.randn(30, generator=generator(8), dtype=torch.float64)
    assert bool(psis(mostly).log_weights[:30].isfinite().all())


def test_takes_no_graph_and_changes_nothing():
    log_w = torch.randn(100, generator=generator(9), requires_grad=True)
    before = log_w.detach().clone()
    assert not psis(log_w).log_weights.requires_grad
    assert torch.equal(log_w, before)


def test_bad_weights_are_errors_with_a_cure():
    with pytest.raises(WeightError, match="2 of 5 log weights are NaN"):
        psis(torch.tensor([0.0, math.nan, math.inf, 1.0, 2.0]))
    with pytest.raises(WeightError, match="density 0"):
        psis(torch.full((5,), -math.inf))
    for wrong in (torch.zeros(2, 3), torch.zeros(0), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ShapeError):
            psis(wrong)


def test_threshold():
    assert khat_threshold(2200) == pytest.approx(0.7, abs=1e-3)
    assert khat_threshold(10**6) == 0.7
    with pytest.raises(OptionError):
        khat_threshold(1)
