"""Moments of globals from few weighted draws."""

import pytest
import torch
from torch.distributions import LogNormal, MultivariateNormal, Normal, StudentT

from pyro_nfvi.infer._stages.global_calibration import weighted_moments


def sheared(dim):
    """A Gaussian near the standard one, with correlations."""
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)).double()
    root = torch.eye(dim).double() + 0.2 * noise.tril() / dim**0.5
    return MultivariateNormal(0.3 * torch.ones(dim).double() / dim**0.5, scale_tril=root)


def draws(dim, count, seed):
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(16_384, dim, dtype=torch.float64, generator=generator)
    plain = MultivariateNormal(torch.zeros(dim).double(), torch.eye(dim).double())
    return known[:count], plain.log_prob(known[:count]), known


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_a_gaussian_there_is_no_noise_but_that_of_the_known_draws(dim, seed):
    """64 draws where they are enough for a regression; else 256. sd of 16,384 draws: 0.6 %."""
    target = sheared(dim)
    z, log_q, known = draws(dim, 64 if dim < 6 else 256, seed)
    mean, sd = weighted_moments(z, target.log_prob(z) - log_q, known)
    truth = target.covariance_matrix.diagonal().sqrt()
    assert float(((mean - target.mean) / truth).abs().max()) < 0.05
    assert float((sd / truth - 1).abs().max()) < 0.03


def skewed(z):
    """Lognormal of mean 0 and sd 1, skewness 0.6."""
    shape = LogNormal(torch.zeros(()).double(), 0.2)
    return shape.log_prob((shape.mean + shape.stddev * z).clamp_min(1e-9)) + shape.stddev.log()


def heavy(z):
    return (
        StudentT(torch.tensor(8.0).double()).log_prob(z / 0.75**0.5)
        - 0.5 * torch.tensor(0.75).log()
    )


@pytest.mark.parametrize("log_density", [skewed, heavy])
def test_what_is_no_gaussian_is_less_noisy_than_weights_alone(log_density):
    """Root mean square errors over 40 sets of 64 draws: a quarter of those of plain weights."""
    errors, plain = [], []
    for seed in range(40):
        z, log_q, known = draws(1, 64, seed)
        log_w = log_density(z[:, 0]) - log_q
        mean, sd = weighted_moments(z, log_w, known)
        weight = log_w.softmax(0)
        own = (weight * z[:, 0]).sum()
        wide = (weight * (z[:, 0] - own).square()).sum().sqrt()
        errors.append([float(mean), float(sd) - 1])
        plain.append([float(own), float(wide) - 1])
    ours, theirs = (torch.tensor(one).square().mean(0).sqrt() for one in (errors, plain))
    assert bool((ours < 0.4 * theirs).all()), (ours, theirs)


def test_too_few_draws_for_a_regression_are_weighed():
    target = Normal(0.2, 1.0)
    z, log_q, known = draws(40, 64, 0)
    mean, sd = weighted_moments(
        z, target.log_prob(z[:, 0]) - Normal(0.0, 1.0).log_prob(z[:, 0]), known
    )
    assert abs(float(mean[0]) - 0.2) < 0.3
    assert bool(torch.isfinite(sd).all())


def test_weights_that_say_nothing_move_nothing():
    z, _, known = draws(2, 64, 0)
    assert weighted_moments(z, torch.full((64,), -torch.inf).double(), known) is None
    one = torch.full((64,), -1e3).double()
    one[3] = 0.0
    assert weighted_moments(z, one, known) is None
