"""What more steps would bring."""

import math

import pytest
import torch

from pyro_nfvi._optim.learning_curve import forecast


def losses(count, gap=200.0, noise=0.0):
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(1, count + 1, dtype=torch.float64)
    return (3.0 + gap / t + noise * torch.randn(count, generator=generator)).tolist()


def test_exact_on_its_own_curve():
    found = forecast(losses(1000))
    assert found.steps == 1000
    assert found.gain == pytest.approx(200 / 1000 - 200 / 2000, rel=0.02)
    assert found.error < 0.01
    assert "1000 steps more at the constant rate would bring about 0.1 ±" in str(found)


def test_noise_is_in_the_error():
    # Twenty curves of equal length: 19 of 20 within two errors, and five is beyond belief (2e-5
    # for all of them together).
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        t = torch.arange(1, 1001, dtype=torch.float64)
        noisy = 3.0 + 200 / t + torch.randn(1000, generator=generator, dtype=torch.float64)
        found = forecast(noisy.tolist())
        assert abs(found.gain - 0.1) < 5 * found.error + 0.002


def test_a_flat_bound_has_nothing_to_come():
    found = forecast(losses(1000, gap=0.0, noise=1.0))
    assert found.gain < 4 * found.error
    assert "next to nothing" in str(forecast([3.0] * 600))


def test_a_forecast_that_is_noise_names_no_nats():
    # Of a flat bound the forecast is within two errors in 39 of 40 seeds (one side).
    told = [forecast(losses(800, gap=0.0, noise=n)) for n in (0.5, 5.0, 50.0, 500.0)]
    assert all("nats" not in str(found) for found in told if not found.significant)
    assert sum(not found.significant for found in told) >= 3


def test_too_few_steps_or_numbers_say_nothing():
    assert forecast(losses(200)) is None
    assert forecast([math.nan] * 1000) is None
    assert forecast([]) is None


def test_steps_without_a_bound_are_left_out():
    values = losses(1000)
    values[510] = math.nan
    assert forecast(values).gain == pytest.approx(0.1, rel=0.05)
