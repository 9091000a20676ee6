"""Means and sds of many draws of the guide against weighted ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi.flows import make_flow
from pyro_nfvi.infer._checks.moments import moved_moments
from pyro_nfvi.infer._checks.reaching_draws import reaching_draws
from pyro_nfvi.infer._findings import Level, MovedMoments

ZERO = torch.tensor(0.0)


def normal():
    pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("b", dist.Normal(ZERO, 1.0))
    pyro.factor("nothing", torch.zeros(()))


@pytest.fixture(scope="module")
def fit():
    return NFVI(normal, "affine", seed=0, progress=False, max_steps=30).run()


def moved(fit, change, **options):
    """What is said of the guide after a change of its density's map."""
    density = fit.guide.density()
    push = density.push

    def other(eps, context=None):
        z, log_q = push(eps, context)
        return change(z, log_q)

    density.push = other
    return moved_moments(
        fit.latent, reaching_draws(density, fit.log_joint, fit.draws, 0), **options
    )


def test_a_right_fit_is_left_alone(fit):
    # Ten seeds, three numbers: a false alarm asks for 0.1 sd, where the error is 0.01.
    density = fit.guide.density()
    for seed in range(10):
        draws = reaching_draws(density, fit.log_joint, fit.draws, seed)
        assert moved_moments(fit.latent, draws) == ()


def test_a_mean_and_an_sd_that_are_off_are_named(fit):
    def shifted(z, log_q):
        return z + torch.tensor([0.3, 0.0, 0.0]), log_q

    (one,) = moved(fit, shifted)
    assert one.name == "a[0]"
    assert abs(one.shift - 0.3) < 0.05
    narrow = torch.tensor([1.0, 1.0, 0.6])
    (one,) = moved(fit, lambda z, log_q: (z * narrow, log_q - narrow.log().sum()))
    assert one.name == "b"
    assert abs(one.stretch - 0.6) < 0.05
    assert moved(fit, shifted, heavy=("a[0]",)) == ()


def test_rare_wild_draws_count(fit):
    """Beyond 4.5 sds the draws are a hundred times as far: one draw in 150,000."""

    def wild(z, log_q):
        far = z[:, 2].abs() > 4.5
        scale = torch.where(far, 100.0, 1.0)
        return torch.cat([z[:, :2], (scale * z[:, 2]).unsqueeze(-1)], -1), log_q - scale.log()

    assert fit.draws.z[:, 2].abs().max() < 4.5  # none among those that judge the fit
    (one,) = moved(fit, wild)
    assert one.name == "b"
    assert one.stretch > 1.3


def test_a_finding_says_which_and_keeps_a_fit_from_being_good():
    found = MovedMoments(("b",), (0.02,), (1.6,))
    assert found.level is Level.DOUBT
    assert "b" in found.sentence()
    assert MovedMoments((), (), ()).level is Level.REMARK


def test_names_are_those_of_constrained_numbers():
    def model():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("m", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        pyro.factor("nothing", torch.zeros(()))

    fit = NFVI(model, make_flow("iaf", 4), seed=0, progress=False, max_steps=50).run()
    far = moved(fit, lambda z, log_q: (z + 0.5, log_q))
    names = {one.name for one in far}
    assert {"p[2]", "m[0, 1]"} <= names
