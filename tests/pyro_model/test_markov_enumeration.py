"""A DiscreteHMM is scored for all particles together, as Pyro scores it."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.markov_enumeration import log_chain
from pyro_nfvi._pyro_model.second_opinion import second_opinion


def chain(length, states, *, structural=False, masked=False):
    y = torch.sin(torch.arange(float(length)))

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(states), 1.0).to_event(1))
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(states, states)).to_event(1))
        log_rows = rows.log()
        if structural:  # from left to right alone
            log_rows = log_rows.masked_fill(torch.ones(states, states).tril(-1).bool(), -torch.inf)
        hmm = dist.DiscreteHMM(torch.zeros(states), log_rows, dist.Normal(loc, 0.7))
        pyro.sample("y", hmm.mask(torch.tensor(True)) if masked else hmm, obs=y)

    return model


@pytest.mark.parametrize("length", [1, 2, 7, 200])
@pytest.mark.parametrize("states", [2, 3])
@pytest.mark.parametrize("structural", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_hidden_markov_model_runs_together_and_is_scored_as_by_pyro(
    length, states, structural, masked
):
    model = chain(length, states, structural=structural, masked=masked)
    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    log_joint = LogJoint(model, (), {}, latent)
    assert log_joint.how != "loop"
    z = torch.randn(4, latent.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = second_opinion(log_joint, z.detach())
    assert found.draws == 4
    assert not found.objections
    (slope,) = torch.autograd.grad(log_joint(z, {}).sum(), z)
    assert bool(torch.isfinite(slope).all())


def test_a_subclass_of_a_user_keeps_its_own_density():
    class Halved(dist.DiscreteHMM):
        def log_prob(self, value):
            return super().log_prob(value) / 2

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample(
            "y",
            Halved(torch.zeros(2), torch.zeros(2, 2), dist.Normal(loc, 0.7)),
            obs=torch.arange(5.0),
        )

    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    found = second_opinion(LogJoint(model, (), {}, latent), torch.zeros(1, 2))
    assert (found.draws, found.objections) == (1, ())


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_a_chain_of_log_factors_is_the_product_of_its_matrices(length):
    noise = torch.Generator().manual_seed(length)
    factors = torch.rand(2, length, 3, 3, generator=noise, dtype=torch.float64)
    product = factors[:, 0]
    for t in range(1, length):
        product = product @ factors[:, t]
    torch.testing.assert_close(log_chain(factors.log()).exp(), product)
