"""Evidence by bridge sampling and the harmonic mean: right where it is known, errors honest."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, StudentT

from pyro_nfvi.diagnostics._bridge import bridge_evidence, disagree, harmonic_evidence
from pyro_nfvi.diagnostics._importance import log_evidence
from pyro_nfvi.errors import ShapeError, WeightError

EVIDENCE = -7.25


def draws(law, count, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return law.sample((count,)).double()


ONE = torch.ones((), dtype=torch.float64)
#: Posterior and approximation, of one number or of ten.
PAIRS = {
    "equal": (Normal(0 * ONE, ONE), Normal(0 * ONE, ONE)),
    "too narrow": (Normal(0 * ONE, ONE), Normal(0 * ONE, 0.6 * ONE)),
    "too wide": (Normal(0 * ONE, ONE), Normal(0 * ONE, 2 * ONE)),
    "shifted": (Normal(0 * ONE, ONE), Normal(ONE, ONE)),
    "tails too light": (StudentT(3 * ONE), Normal(0 * ONE, ONE)),
    "tails too heavy": (Normal(0 * ONE, ONE), StudentT(3 * ONE)),
    "ten numbers": (
        MultivariateNormal(torch.zeros(10).double(), torch.eye(10).double()),
        MultivariateNormal(0.2 * torch.ones(10).double(), 0.7 * torch.eye(10).double()),
    ),
}


def weights(name, seed, count=2000):
    posterior, guide = PAIRS[name]

    def log_w(z):
        return EVIDENCE + posterior.log_prob(z) - guide.log_prob(z)

    return log_w(draws(guide, count, seed)), log_w(draws(posterior, count, seed + 1000))


@pytest.mark.parametrize("name", PAIRS)
def test_the_bridge_is_right_within_its_errors(name):
    # Of 40 normal errors none is beyond 5 sds but in one of 40,000 runs, and their root mean
    # square is between 0.6 and 1.5 but in one of 1000.
    errors = []
    for seed in range(40):
        value, error = bridge_evidence(*weights(name, seed))
        assert abs(value - EVIDENCE) <= 5 * error + 1e-6
        errors.append((value - EVIDENCE) / error if error > 1e-9 else 1.0)
    assert 0.6 < math.sqrt(sum(e * e for e in errors) / len(errors)) < 1.5


def test_the_bridge_holds_where_importance_sampling_fails():
    bridge, plain = [], []
    for seed in range(20):
        before, after = weights("tails too light", seed)
        bridge.append(bridge_evidence(before, after)[0] - EVIDENCE)
        plain.append(log_evidence(before)[0] - EVIDENCE)
    spread = torch.tensor(plain).square().mean().sqrt()
    assert torch.tensor(bridge).square().mean().sqrt() < 0.7 * spread


def test_autocorrelated_chains_have_larger_errors():
    noise = torch.Generator().manual_seed(0)
    chains = torch.zeros(8, 500, dtype=torch.float64)
    for step in range(1, 500):
        kick = torch.randn(8, generator=noise, dtype=torch.float64)
        chains[:, step] = 0.95 * chains[:, step - 1] + math.sqrt(1 - 0.95**2) * kick
    posterior, narrow = PAIRS["too narrow"]
    ratio = narrow.log_prob(chains) - posterior.log_prob(chains) - EVIDENCE
    value, error = harmonic_evidence(ratio)
    _, naive = harmonic_evidence(ratio.flatten())
    assert error > 2 * naive  # squares have a correlation of 0.9: 4.4 times
    assert abs(value - EVIDENCE) < 5 * error


@pytest.mark.parametrize("variance", [0.8, 0.5])
def test_the_harmonic_mean_with_lighter_tails_is_right(variance):
    posterior, narrow = Normal(0 * ONE, ONE), Normal(0 * ONE, math.sqrt(variance) * ONE)
    for seed in range(20):
        z = draws(posterior, 2000, seed)
        value, error = harmonic_evidence(narrow.log_prob(z) - posterior.log_prob(z) - EVIDENCE)
        assert abs(value - EVIDENCE) < 5 * error
        assert error < 0.03


def test_estimates_that_differ():
    assert disagree(0.0, 0.0, 0.2, 0.0)
    assert not disagree(0.0, 0.0, 0.09, 0.0)
    assert not disagree(0.0, 0.1, 0.3, 0.1)
    assert disagree(0.0, 0.1, math.nan, 0.1)


def test_bad_input():
    good = torch.zeros(10)
    with pytest.raises(ShapeError, match=r"\(n,\) or \(chains, n\)"):
        bridge_evidence(good, torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError):
        bridge_evidence(torch.zeros(2, 3), good)
    with pytest.raises(WeightError, match="weight 0"):
        bridge_evidence(good, torch.tensor([0.0, -torch.inf]))
    with pytest.raises(WeightError):
        harmonic_evidence(torch.tensor([0.0, torch.nan]))
