"""Latent sites that some runs of a model have and others have not: an error, never a number."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import ModelError

Y = torch.tensor(1.0)
#: Far from where a model is first run, so that no check before the fit comes there.
FAR = 6.0


def vanishes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a < FAR else torch.zeros(())
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=Y)


def appears():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a > FAR else torch.zeros(())
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=Y)


def grows():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for i in range(1 + int(a > FAR)):
        a = a + pyro.sample(f"step_{i}", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


def vanishes_in_a_plate():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2):
        b = pyro.sample("b", dist.Normal(a, 1.0)) if a < FAR else a.expand(2)
        pyro.sample("y", dist.Normal(b, 1.0), obs=Y.expand(2))


def vanishes_beside_a_summed_one():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a < FAR else torch.zeros(())
    k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    pyro.sample("y", dist.Normal(a + b + k, 1.0), obs=Y)


def an_observed_one_alone_changes():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    if a > FAR:
        pyro.sample("far", dist.Normal(a, 1.0), obs=Y)
    pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


def log_joint(model):
    trace = pyro.poutine.trace(pyro.infer.config_enumerate(model)).get_trace()
    return LogJoint(model, (), {}, LatentSpace.from_trace(trace), way="loop")


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (vanishes, "b"),
        (appears, "b"),
        (grows, "step_1"),
        (vanishes_in_a_plate, "b"),
        (vanishes_beside_a_summed_one, "b"),
    ],
)
def test_a_run_with_other_sites_is_an_error_that_names_one(model, site):
    scored = log_joint(model)
    near = torch.zeros(1, scored.latent.dim)
    assert torch.isfinite(scored(near)).all()
    far = near.clone()
    far[:, 0] = FAR + 1
    with pytest.raises(
        ModelError, match=f"latent site '{site}'.*([Dd]raw the site|draw it) always"
    ):
        scored(far)


def test_data_may_come_and_go():
    scored = log_joint(an_observed_one_alone_changes)
    assert torch.isfinite(scored(torch.tensor([[0.0], [FAR + 1]]))).all()


def test_a_fit_says_so_before_it_trains():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a > 0 else torch.zeros(())
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=Y)

    with pytest.raises(ModelError, match="latent site 'b'"):
        nfvi.NFVI(model, max_steps=20, progress=False, seed=0).run()


def test_a_discrete_site_without_end_has_a_cure_that_works():
    def model(k=None):
        k = pyro.sample("k", dist.Poisson(2.0), obs=k)
        a = pyro.sample("a", dist.Normal(k, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y)

    with pytest.raises(ModelError, match="one fit for each value.*condition\\(model, {'k': value}"):
        nfvi.AutoIAF(model)()
    two = pyro.poutine.condition(model, {"k": torch.tensor(2.0)})
    fit = nfvi.NFVI(two, "affine", max_steps=50, progress=False, seed=0, explore="off").run()
    exact = dist.Normal(2.0, 2**0.5).log_prob(Y) + dist.Poisson(2.0).log_prob(torch.tensor(2.0))
    assert fit.log_evidence()[0] == pytest.approx(float(exact), abs=0.02)
