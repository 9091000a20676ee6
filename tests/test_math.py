"""Scalar mathematics against slow, obviously right versions."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch

from pyro_nfvi import _math as numerics

getcontext().prec = 60


def exact_tanh(t: Decimal) -> Decimal:
    up = (2 * abs(t)).exp()
    return ((up - 1) / (up + 1)).copy_sign(t)


def exact_root(k: float, slope: float) -> float:
    """Solve ``t + a tanh t = k`` by bisection in 60 digits."""
    a, target = Decimal(slope) - 1, Decimal(k)
    low, high = target - abs(a) - 1, target + abs(a) + 1
    for _ in range(190):
        middle = (low + high) / 2
        if middle + a * exact_tanh(middle) < target:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


@pytest.mark.parametrize("slope", [1e-3, 0.01, 0.5, 1.0, 1.5, 31.0, 1001.0])
def test_root_against_bisection_in_60_digits(slope):
    ks = [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.7, 1.0, 3.0, 50.0, 999.0, 1e3, 1001.5, 1e6]
    ks += [-k for k in ks]
    k = torch.tensor(ks, dtype=torch.float64)
    t = numerics.solve_tanh(k, torch.full_like(k, slope))
    expected = torch.tensor([exact_root(one, slope) for one in ks], dtype=torch.float64)
    # A rounding of k by half an ulp moves the root by that over the slope at the root.
    wobble = (
        1e-15
        * (k.abs() + abs(slope - 1))
        / numerics.tanh_slope(expected, torch.tensor(slope, dtype=torch.float64))
    )
    assert ((t - expected).abs() <= 4 * wobble + 1e-50).all()


def root_error_bound(t, k, slope):
    """Bound the distance of t to the root: ``|t + a tanh t - k|`` over ``min(1, 1 + a)``."""
    residual = (t + (slope - 1) * torch.tanh(t) - k).abs()
    return residual / slope.clamp_max(1.0)


@pytest.mark.parametrize("slope", [2e-3, 0.3, 1.0, 40.0])
def test_certificate_bounds_the_error_of_any_point(slope):
    k = torch.linspace(-20, 20, 41, dtype=torch.float64)
    a = torch.full_like(k, slope)
    exact = torch.tensor([exact_root(float(one), slope) for one in k], dtype=torch.float64)
    for shift in (-1.0, -1e-3, 0.0, 1e-6, 0.5):
        bound = root_error_bound(exact + shift, k, a)
        assert (bound >= abs(shift) * (1 - 1e-6) - 1e-12).all()
    assert (root_error_bound(numerics.solve_tanh(k, a), k, a) <= 1e-10).all()


def test_root_has_first_and_second_derivatives():
    k = torch.tensor([-3.0, -0.2, 0.0, 0.4, 7.0], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.05, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(numerics.solve_tanh, (k, slope))
    assert torch.autograd.gradgradcheck(numerics.solve_tanh, (k, slope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_is_exact_at_zero(dtype):
    zero = torch.zeros(3, dtype=dtype)
    assert torch.equal(numerics.one_plus_a(zero), torch.ones(3, dtype=dtype))
    one = torch.ones(5, dtype=dtype)
    t = torch.linspace(-900, 900, 5, dtype=dtype)
    assert torch.equal(numerics.log_tanh_slope(t, one), torch.zeros(5, dtype=dtype))
    assert torch.equal(numerics.solve_tanh(t, one), t)


def test_slope_stays_above_its_floor_and_has_its_inverse():
    alpha = torch.tensor([-1e4, -30.0, -3.0, -1e-6, 0.0, 0.5, 20.0, 1e4], dtype=torch.float64)
    slope = numerics.one_plus_a(alpha)
    assert (slope >= numerics.MIN_SLOPE).all()
    assert (slope[1:].diff() > 0).all()
    torch.testing.assert_close(numerics.one_plus_a_inverse(slope[2:]), alpha[2:])


@pytest.mark.parametrize("slope", [1e-3, 1 - 1e-9, 1 + 1e-12, 5.0, 1e3])
def test_log_slope_against_60_digits(slope):
    ts = [0.0, 1e-9, 1e-3, 0.3, 1.0, 4.0, 20.0, 300.0]
    t = torch.tensor(ts + [-one for one in ts], dtype=torch.float64)
    found = numerics.log_tanh_slope(t, torch.full_like(t, slope))
    for one, value in zip(t.tolist(), found.tolist()):
        if abs(one) > 60:  # sech^2 is below the 60 digits: its leading term, and log(1 + e) = e
            expected = (Decimal(slope) - 1) * 4 * (-2 * abs(Decimal(one))).exp()
        else:
            expected = (1 + (Decimal(slope) - 1) * (1 - exact_tanh(Decimal(one)) ** 2)).ln()
        assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-300)


def test_log_slope_has_finite_gradients_everywhere():
    t = torch.tensor([0.0, 1e-8, 1.0, 50.0, 400.0, 1e4], requires_grad=True)
    for slope in (1e-3, 0.4, 0.6, 1.0, 1e3):
        a = torch.full((6,), slope, requires_grad=True)
        gradients = torch.autograd.grad(numerics.log_tanh_slope(t, a).sum(), (t, a))
        assert all(one.isfinite().all() for one in gradients)


def test_sech2_does_not_cancel():
    t = torch.tensor([0.0, 1.0, 20.0, 300.0, -20.0], dtype=torch.float64)
    expected = [1.0, 1 / math.cosh(1) ** 2, 1 / math.cosh(20) ** 2, 4 * math.exp(-600), 0]
    expected[4] = expected[2]
    torch.testing.assert_close(
        numerics.sech2(t), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_softplus_inverse():
    y = torch.tensor([1e-30, 1e-8, 0.1, 1.0, 30.0, 1e4], dtype=torch.float64)
    x = numerics.softplus_inverse(y)
    torch.testing.assert_close(torch.nn.functional.softplus(x), y, rtol=1e-12, atol=0)


def test_soft_clamp_is_bounded_smooth_and_starts_with_slope_one():
    x = torch.tensor([-1e9, -3.0, -1e-9, 0.0, 1e-9, 2.0, 1e9], dtype=torch.float64)
    y = numerics.soft_clamp(x, 2.0)
    assert (y.abs() <= 2).all()
    assert y[3] == 0
    assert (y.diff() > 0).all()
    torch.testing.assert_close(y[2] / x[2], torch.ones((), dtype=torch.float64))
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(numerics.soft_clamp(point, 2.0).sum(), point)
    torch.testing.assert_close(numerics.soft_clamp_slope(x, 2.0), slope)
