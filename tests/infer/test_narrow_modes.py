"""Needles that the first search misses are found among draws of the guide, or reported."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.infer._checks import narrow_modes
from pyro_nfvi.infer._findings import Level, NarrowModes, find
from pyro_nfvi.infer._stages import model_mode_search
from pyro_nfvi.infer._weighted_draws import weigh


def slab(factor=lambda x: torch.zeros(())):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", factor(x))

    return model


def log_normal(x, at, sd):
    return dist.Normal(at, sd).log_prob(x).sum(-1)


def with_needle(at, sd, share):
    """A standard normal and a narrow one."""

    def factor(x):
        apart = log_normal(x, at, sd) - log_normal(x, 0.0, 1.0)
        return torch.logaddexp(torch.tensor(math.log(1 - share)), math.log(share) + apart)

    return slab(factor)


def normal_at(model, loc, sd):
    pyro.clear_param_store()  # guides of one model have parameters of the same names
    guide = AutoFlow(model, None)
    guide.setup()
    guide.start_at(torch.as_tensor(loc), sd * torch.eye(3))
    return guide.density()


def looked_at(model, density, **options):
    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    log_joint = LogJoint(model, (), {}, latent)
    draws = weigh(density, log_joint, 1000, torch.Generator().manual_seed(0))
    return narrow_modes.narrow_modes(density, log_joint, draws, 0, **options)


NEEDLES = [([0.5, -0.8, 0.3], 0.03, 0.5), ([-1.2, 0.1, 0.9], 0.05, 0.2), ([0.0] * 3, 0.02, 0.9)]


@pytest.mark.parametrize(("at", "sd", "share"), NEEDLES)
def test_a_needle_is_found_beside_a_guide_that_misses_it(at, sd, share):
    at = torch.tensor(at)
    model = with_needle(at, sd, share)
    wide, narrow = normal_at(model, [0.0] * 3, 1.0), normal_at(model, at, sd)
    found = looked_at(model, wide, effort=0.3)
    assert found.count == 1
    # Relative to what the guide sees of the rest: its ELBO is below the mass of that.
    assert found.share == pytest.approx(share, abs=0.05)
    both = MixtureDensity([wide, narrow], torch.tensor([1 - share, share]).log())
    assert looked_at(model, both, effort=0.3).count == 0


def test_a_needle_with_no_mass_of_note_is_none():
    model = with_needle(torch.tensor([0.5, -0.8, 0.3]), 0.1, 0.001)
    found = looked_at(model, normal_at(model, [0.0] * 3, 1.0), effort=0.1)
    assert (found.count, found.share) == (0, 0.0)
    assert found.points > 10_000


def test_nothing_is_concluded_where_particles_run_one_by_one():
    def alone():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", torch.tensor(float(x[0].item() > 100)))

    assert looked_at(alone, normal_at(alone, [0.0] * 3, 1.0)) is None


def test_what_the_search_before_training_misses_cannot_be_good(monkeypatch):
    """The search scores one point, so that nothing but the guide's draws comes to the needle."""
    monkeypatch.setattr(model_mode_search, "_num_searched", lambda *_: (1, 1))
    at = torch.tensor([0.8, -0.5, 0.6])
    fit = NFVI(with_needle(at, 0.02, 0.5), seed=0, max_steps=400, progress=False).run()
    found = find(fit.training.findings, NarrowModes)
    assert (found.count, found.level) == (1, Level.DOUBT)
    assert fit.verdict != "good"
    assert any(f"among {found.points} points" in reason for reason in fit.verdict.reasons)


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), torch.exp(v / 2).unsqueeze(-1)).to_event(1))
    pyro.factor("f", torch.zeros(()))


def eight_schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


def student():
    pyro.sample("x", dist.StudentT(3.0, torch.zeros(4), 1.0).to_event(1))
    pyro.factor("f", torch.zeros(()))


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.square(), 0.5))
    pyro.factor("f", torch.zeros(()))


def two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    pyro.factor("f", torch.logaddexp(log_normal(x, -3.0, 0.5), log_normal(x, 3.0, 0.5)))


def bent():
    """A ridge that bends in four dimensions, with a needle on it, far from a Gaussian's draws."""
    at = torch.tensor([1.0, 0.8, 0.1, -0.3])
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 10.0).to_event(1))
    ridge = dist.Normal(0.0, 1.0).log_prob(x[..., 0])
    for i in range(1, 4):
        ridge = ridge + dist.Normal(0.5 * x[..., i - 1].square(), 0.5).log_prob(x[..., i])
    both = torch.logaddexp(ridge, log_normal(x, at, 0.04))
    pyro.factor("f", both - log_normal(x, 0.0, 10.0))


@pytest.mark.slow
@pytest.mark.parametrize("model", [funnel, eight_schools, student, banana, two_modes])
def test_fits_that_are_right_have_no_needles(model):
    fit = NFVI(model, seed=0, progress=False).run()
    found = find(fit.training.findings, NarrowModes)
    assert (found.count, found.level) == (0, Level.REMARK)
    assert found.points > 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_needle_on_a_bent_ridge_is_found_or_told(seed):
    fit = NFVI(bent, seed=seed, progress=False).run()
    # Half of the mass: -0.3, and 0.35 or more for the ridge alone.
    last = float(fit.sample(20_000, seed=0)["x"][:, 3].mean())
    assert fit.verdict != "good" or last < 0.2


def test_a_search_that_could_not_be_made_is_said():
    assert "not searched" in NarrowModes(0).sentence()
    assert NarrowModes(0, points=1000).sentence() == ""
    assert "1000 points" in NarrowModes(1, 0.1, 1000).sentence()
