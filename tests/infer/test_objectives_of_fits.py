"""Objectives in a fit: every engine, what is reported, when it may stop."""

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import on

from pyro_nfvi import NFVI
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives import ImportanceELBO, Tempered, TemperedELBO

Y = torch.tensor([1.0, 2.0, 3.0, 2.5])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def fit(objective, engine="graph", guide="affine", **options):
    options = {"max_steps": 300, "seed": 0, "progress": False, "explore": "off", **options}
    return on(NFVI(model, guide, objective, **options), engine).run(Y)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("iw", "renyi")]


@pytest.mark.parametrize("objective", ["dreg", TemperedELBO(Tempered(steps=20)), *SLOW])
def test_engines_agree(objective):
    # From one start: a Gaussian stage of compiled code ends elsewhere, by rounding.
    options = {"max_steps": 60, "precondition": False}
    plain, graph = fit(objective, "eager", **options), fit(objective, **options)
    assert torch.equal(plain.losses, graph.losses)
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        native = fit(objective, "native", **options)
        torch.testing.assert_close(native.losses[:20], plain.losses[:20], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(plain.losses).all()


def test_losses_are_of_the_objective_and_elbo_is_the_elbo():
    # The bound of 64 draws is within 0.05 nats of the evidence, the ELBO 0.1 nats and more below:
    # a mean-field Gaussian cannot be this posterior. Both have a noise of 0.01.
    found = fit(ImportanceELBO(64, "total"), max_steps=600)
    evidence, _ = found.log_evidence()
    assert abs(float(found.losses[-100:].mean()) + evidence) < 0.05
    assert found.elbo < evidence - 0.1
    assert found.training.settings.objective == "iw(num_samples=64, total)"


@pytest.mark.slow
def test_no_fit_counts_as_converged_before_it_is_cold():
    # Converged is looked at from 300 steps on; this one is cold after 500, and needs 300 more.
    found = fit(TemperedELBO(Tempered(steps=505)), max_steps=3000)
    assert found.why_stopped == "converged"
    assert len(found.losses) > 800
    assert found.khat < 1.2


@pytest.mark.slow
def test_a_resumed_fit_goes_on_at_its_temperature(tmp_path):
    path = tmp_path / "fit.checkpoint"
    objective = TemperedELBO(Tempered(steps=60))

    class Stop(Exception):
        pass

    def stop(info):
        if info.step == 30:
            raise Stop

    whole = fit(objective, stop=False, max_steps=200)
    options = {"stop": False, "max_steps": 200, "checkpoint": path, "checkpoint_every": 10}
    with pytest.raises(Stop):
        fit(objective, callbacks=[stop], **options)
    again = fit(objective, resume=True, **options)
    assert torch.equal(again.losses, whole.losses)


def test_options_are_checked_before_any_work():
    with pytest.raises(OptionError, match="num_particles is to be a multiple; got 30"):
        NFVI(model, objective="dreg", num_particles=30)
    with pytest.raises(OptionError, match="training would end there or before"):
        NFVI(model, objective="tempered", max_steps=600)
    with pytest.raises(OptionError, match="9900"):
        NFVI(model, objective=TemperedELBO())
    NFVI(model, objective=TemperedELBO(), max_steps=60_000)
