"""Short chains from a fit's draws: no alarm where it is right, and bounds below the true errors."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, AutoFlow, Target
from pyro_nfvi._mcmc.autograd_density import AutogradDensity
from pyro_nfvi._mcmc.short_chains import short_chains
from pyro_nfvi._random import stream
from pyro_nfvi.infer._checks.moved_functionals import Movements
from pyro_nfvi.infer._findings import ChainsMove, Level, find

DOUBLE = torch.float64


def movements_of(log_density, dim, seed, chains=1024):
    """Movements from a guide that is N(0, 1) for a density of D numbers."""
    noise = stream(seed, "test")
    start = torch.randn(chains, dim, generator=noise, dtype=DOUBLE)
    ended = short_chains(AutogradDensity(log_density), start, noise)
    return Movements.of(ended.start, ended.end, torch.full((chains,), 1 / chains, dtype=DOUBLE))


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale)


@pytest.mark.parametrize("dim", [1, 20])
def test_exact_guides_do_not_move(dim):
    # A chance of 0.1 % for all numbers of a guide: of 60 more than one alarm comes in 1 of 600.
    alarms = 0
    for seed in range(60):
        found = movements_of(lambda z: -0.5 * z.square().sum(-1), dim, seed, chains=256)
        alarms += any(bool((one > 0).any()) for one in found.sure)
    assert alarms <= 1


#: Density of D numbers for which N(0, 1) stands; its means and sds.
WRONG = {
    "shifted": (lambda z: normal(z, 0.7, 1.0).sum(-1), [0.7] * 2, [1.0] * 2),
    "wide": (lambda z: normal(z, 0.0, 2.0).sum(-1), [0.0] * 2, [2.0] * 2),
    "narrow": (lambda z: normal(z, 0.0, 0.4).sum(-1), [0.0] * 2, [0.4] * 2),
    "correlated": (
        lambda z: normal(z[:, 0], 0.0, 1.0) + normal(z[:, 1], 0.95 * z[:, 0], 0.2),
        [0.0] * 2,
        [1.0, math.sqrt(0.95**2 + 0.04)],
    ),
    "banana": (
        lambda z: normal(z[:, 0], 0.0, 1.0) + normal(z[:, 1], z[:, 0] ** 2, 0.5),
        [0.0, 1.0],
        [1.0, 1.5],
    ),
    "Student t": (lambda z: -3.0 * (1 + z**2 / 5).log().sum(-1), [0.0] * 2, [math.sqrt(5 / 3)] * 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_bounds_are_below_the_errors(name):
    log_density, mean, sd = WRONG[name]
    mean, sd = torch.tensor(mean, dtype=DOUBLE), torch.tensor(sd, dtype=DOUBLE)
    for seed in range(2):
        found = movements_of(log_density, 2, seed)
        shift, stretch = found.bounds
        # In units of the sd at the ends, which lies between those of guide and density.
        assert bool((shift <= mean.abs() / torch.minimum(sd, torch.ones(2))).all())
        assert bool((stretch <= sd.log().abs()).all())


@pytest.mark.parametrize(("name", "number"), [("shifted", 0), ("wide", 1), ("narrow", 1)])
def test_large_errors_are_seen(name, number):
    # Of a shift of 0.7 sds, and sds wrong by 2 and 0.4, some is sure in every one of five seeds.
    for seed in range(5):
        found = movements_of(WRONG[name][0], 2, seed)
        assert bool((found.bounds[number] > 0.1).all())


def test_where_no_chain_can_run_nothing_is_said():
    noise = stream(0, "test")
    nowhere = AutogradDensity(lambda z: torch.full_like(z[:, 0], -math.inf) + 0 * z[:, 0])
    assert short_chains(nowhere, torch.randn(16, 2, generator=noise), noise) is None
    edge = AutogradDensity(lambda z: torch.where(z > -1, -(z + 1), -math.inf).sum(-1))
    assert short_chains(edge, torch.randn(256, 1, generator=noise), noise) is None
    needle = AutogradDensity(lambda z: -0.5 * (z / 1e-4).square().sum(-1))
    assert short_chains(needle, torch.randn(16, 2, generator=noise), noise) is None


# ---------------------------------------------------------------------------------- in fits


def bent(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("level", dist.Normal(x.square(), 0.3))
    pyro.sample("y", dist.Normal(x, 5.0), obs=y)


def test_a_fit_that_moves_is_not_good_and_says_where():
    fit = NFVI(
        bent, lambda model: AutoFlow(model, None), max_steps=100, seed=0, progress=False
    ).run(torch.tensor(0.0))
    found = find(fit.training.findings, ChainsMove)
    assert found.chains == 1024
    assert found.sites == ("x", "level")
    assert found.level is Level.DOUBT
    assert "level" in found.names
    assert max(found.site_sds[1], found.site_means[1]) > 0.05
    assert fit.verdict != "good"
    assert "short chains, which leave the posterior as it is, move " in "".join(fit.verdict.reasons)
    assert "lower bounds of errors by 1024 short chains: " in fit.report


def test_a_fit_that_is_exact_needs_no_chains():
    target = Target(lambda z: -0.5 * (z - 3).square().sum(-1), 3)
    fit = NFVI(target, "affine", max_steps=200, seed=0, progress=False).run()
    assert find(fit.training.findings, ChainsMove) == ChainsMove()
    assert "short chains" not in fit.report
