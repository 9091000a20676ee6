"""Runs of many chains: what they learn, where they start, and how they end."""

import math

import pytest
import torch

from pyro_nfvi._budget import Budget
from pyro_nfvi._mcmc.autograd_density import AutogradDensity
from pyro_nfvi._mcmc.chains import Ending, run_chains
from pyro_nfvi._mcmc.recipe import RUN
from pyro_nfvi._mcmc.starts import choose_starts
from pyro_nfvi.diagnostics._convergence import bulk_ess, nested_rhat, rank_rhat
from pyro_nfvi.errors import ModelError

SDS = torch.tensor([1.0, 0.2, 5.0]).double()


def scaled(z):
    return -0.5 * (z / SDS).square().sum(-1)


def run(log_density, start, **options):
    chosen = {"num_samples": 200, "warmup": 150} | options
    noise = torch.Generator().manual_seed(0)
    return run_chains(AutogradDensity(log_density), start, noise, **chosen)


def starts(chains=32, dim=3, seed=0):
    return torch.randn(chains, dim, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def found():
    return run(scaled, starts())


def test_moments_of_a_known_target(found):
    # Five standard errors each: a false alarm in 1 of 200,000 runs of six numbers.
    size = bulk_ess(found.draws)
    flat = found.draws.flatten(0, 1)
    assert (flat.mean(0).abs() < 5 * SDS / size.sqrt()).all()
    assert ((flat.std(0) / SDS).log().abs() < 5 / size.sqrt()).all()
    assert size.min() > 2000
    assert rank_rhat(found.draws).max() < 1.02


def test_scales_step_and_length_are_learnt(found):
    assert ((found.tuning.scale / SDS).log().abs() < 0.25).all()
    assert 0.65 < found.acceptance.mean() < 0.95
    assert 0.5 < found.tuning.length < 3.0
    assert not found.divergent.any()
    assert found.gradients == found.warmup_gradients + found.steps.sum()
    assert found.ending is Ending.DONE


def test_same_stream_same_draws():
    one, two = (run(scaled, starts(8), num_samples=20, warmup=20) for _ in range(2))
    assert torch.equal(one.draws, two.draws)


def test_log_densities_are_those_of_the_draws(found):
    torch.testing.assert_close(found.log_p, scaled(found.draws))


def test_slow_directions_get_long_trajectories():
    # A correlation of 0.99, which scales of coordinates cannot take away.
    law = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[1.0, 0.99], [0.99, 1.0]]).double()
    )
    chains = run(law.log_prob, 0.1 * starts(32, 2))
    assert chains.steps.double().mean() > 5
    assert bulk_ess(chains.draws).min() > 1000


def test_where_the_density_has_no_number():
    def log_density(z):
        log_p = -0.5 * z.square().sum(-1)
        return torch.where(z[:, 0] > 0.5, math.nan, torch.where(z[:, 1] > 1, -math.inf, log_p))

    chains = run(log_density, -starts(32, 2).abs())
    assert torch.isfinite(chains.draws).all()
    assert torch.isfinite(chains.log_p).all()
    assert (chains.draws[..., 0] <= 0.5).all()
    assert (chains.draws[..., 1] <= 1).all()
    assert 0.02 < chains.divergent.double().mean() < 0.5
    assert chains.tuning.step_size > 0.1  # smaller steps would not stay inside either


def test_a_density_without_a_step_that_works():
    def cliff(z):  # finite at the starts alone
        return torch.where((z == z.round()).all(-1), -z.square().sum(-1), -math.inf)

    chains = run(cliff, starts(8).round(), num_samples=10, warmup=30)
    assert not chains.moved.any()
    assert chains.divergent.all()


def test_interrupted_chains_give_what_they_have():
    def after(count):
        left = iter(range(count))

        def tick(_):
            if next(left, None) is None:
                raise KeyboardInterrupt

        return tick

    chains = run(scaled, starts(8), warmup=20, tick=after(50))
    assert chains.ending is Ending.INTERRUPTED
    assert chains.draws.shape[1] == 31
    assert torch.isfinite(chains.draws).all()
    with pytest.raises(KeyboardInterrupt):
        run(scaled, starts(8), warmup=20, tick=after(10))


def test_time_bounds_warm_up_and_draws():
    class Clock:
        now = 0.0

        def __call__(self):
            self.now += 1.0
            return self.now

    chains = run(scaled, starts(8), num_samples=500, budget=Budget.start(100.0, Clock()))
    assert chains.ending is Ending.TIME
    assert 20 < chains.warmup < 60
    assert 20 < chains.draws.shape[1] < 80
    spent = run(scaled, starts(8), budget=Budget.start(1e-9))
    assert spent.draws.shape[1] == RUN.fewest_draws
    assert spent.warmup == 0


def test_places_of_the_starts():
    density = AutogradDensity(scaled)
    found = choose_starts(density, lambda n: torch.ones(n, 3).double(), 64)
    assert (found.superchains, found.wide) == (16, 4)
    assert found.position[:48].eq(1).all()
    assert found.position[48:].eq(2).all()
    for chains, places in ((2, 2), (3, 3), (4, 2), (6, 3), (8, 2), (40, 10)):
        assert choose_starts(density, lambda n: torch.ones(n, 3).double(), chains).superchains == (
            places
        )


def test_starts_are_where_the_density_is():
    noise = torch.Generator().manual_seed(0)

    def draw(count):
        return torch.randn(count, 2, generator=noise).double()

    def half(z):
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), -math.inf)

    found = choose_starts(AutogradDensity(half), draw, 64)
    assert (found.position[:, 0] > 0).all()
    narrow = choose_starts(
        AutogradDensity(lambda z: torch.where(z.norm(dim=-1) < 1.5, z.sum(-1), math.nan)), draw, 64
    )
    assert (narrow.position.norm(dim=-1) < 1.5).all()
    with pytest.raises(ModelError, match="found no start"):
        choose_starts(AutogradDensity(lambda z: z.sum(-1) * math.nan), draw, 8)


def test_chains_in_two_modes_disagree():
    def two(z):
        return torch.logaddexp(-0.5 * (z[:, 0] - 8).square(), -0.5 * (z[:, 0] + 8).square())

    start = starts(32, 1) + torch.where(torch.arange(32) < 28, 8.0, -8.0).unsqueeze(-1)
    chains = run(two, start)
    assert nested_rhat(chains.draws, 8).item() > 1.1
    together = run(two, starts(32, 1) + 8.0)
    assert nested_rhat(together.draws, 8).item() < 1.02
