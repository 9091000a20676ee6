"""Densities inside Pyro's models: prior, likelihood, plates, contexts."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Normal

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import GaussianMixture
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows import DiagonalAffine, make_flow
from pyro_nfvi.testing._case import perturb


def far(name="realnvp*2", dim=2, **options):
    return perturb(FlowDensity(make_flow(name, dim, **options)), 0.3)


def test_shapes_and_values():
    density = far(context_dim=3)
    context = torch.randn(4, 3)
    both = density.distribution(context)
    assert (both.batch_shape, both.event_shape) == ((4,), (2,))
    x = both.rsample((5,))
    assert x.shape == (5, 4, 2)
    torch.testing.assert_close(both.log_prob(x), density.log_prob(x, context), rtol=1e-3, atol=1e-4)
    value = torch.randn(2)
    torch.testing.assert_close(both.log_prob(value), density.log_prob(value.expand(4, 2), context))
    assert both.expand((6, 4)).sample().shape == (6, 4, 2)


def test_expand_keeps_the_batch_shape_without_a_context():
    wide = far().distribution().expand((3, 2))
    assert wide.sample().shape == (3, 2, 2)
    assert wide.log_prob(torch.zeros(2)).shape == (3, 2)


def test_context_that_does_not_expand_is_named():
    with pytest.raises(ShapeError, match="does not expand"):
        far(context_dim=1).distribution(torch.zeros(4, 1)).expand((3,))


def test_as_prior_and_likelihood_in_a_model():
    torch.manual_seed(0)
    prior, likelihood = far().requires_grad_(False), far(context_dim=2).requires_grad_(False)
    data = torch.randn(6, 2)

    def model(data):
        z = pyro.sample("z", prior.distribution())
        with pyro.plate("rows", len(data)):
            pyro.sample("x", likelihood.distribution(z.expand(len(data), 2)), obs=data)

    trace = poutine.trace(model).get_trace(data)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], prior.log_prob(z), rtol=1e-3, atol=1e-4
    )
    assert trace.nodes["x"]["log_prob"].shape == (6,)
    expected = prior.log_prob(z) + likelihood.log_prob(data, z.expand(6, 2)).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-3, atol=1e-3)


def test_masks_scales_and_vectorised_particles():
    density = far()
    data = torch.randn(5, 2)

    def model(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 5), poutine.scale(scale=2.0), poutine.mask(mask=data[:, 0] > 0):
            pyro.sample("x", density.distribution().mask(True), obs=data + loc.unsqueeze(-1))

    guide = AutoNormal(model)
    loss = Trace_ELBO(num_particles=3, vectorize_particles=False)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
    assert all(torch.isfinite(torch.tensor(svi.step(data))) for _ in range(3))


@pytest.mark.slow
def test_posterior_under_a_density_as_prior_is_exact():
    # A prior N(2, 0.5^2) as a flow, one observation at 3 with noise 0.5: posterior N(2.5, 0.35^2).
    density = FlowDensity(DiagonalAffine(1))
    x = 2 + 0.5 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    density.fit(x, progress=False, seed=0, max_steps=500, lr=0.05)
    density.requires_grad_(False)

    def model():
        z = pyro.sample("z", density.distribution())
        pyro.sample("y", dist.Normal(z.squeeze(-1), 0.5), obs=torch.tensor(3.0))

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO(num_particles=4))
    for _ in range(400):
        svi.step()
    loc, scale = (pyro.param(f"AutoNormal.{name}.z").item() for name in ("locs", "scales"))
    assert loc == pytest.approx(2.5, abs=0.08)
    assert scale == pytest.approx(0.5 / 2**0.5, abs=0.06)


def test_parameters_train_inside_a_model():
    density = FlowDensity(DiagonalAffine(1), GaussianMixture(1, 2))
    data = 4 + torch.randn(200, 1, generator=torch.Generator().manual_seed(0))

    def model(data):
        pyro.module("density", density)
        with pyro.plate("rows", len(data)):
            pyro.sample("x", density.distribution(), obs=data)

    svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(150)]
    truth = -Normal(4.0, 1.0).log_prob(data).sum().item()
    assert losses[-1] < truth + 15
    assert losses[0] > truth + 300


def test_own_draw_is_scored_without_inversion():
    density = far("bnaf*1")
    both = density.distribution()
    x = both.rsample((3,))

    def no_inverse(*args):
        raise AssertionError("inverted")

    density.flow.inverse = no_inverse
    assert both.log_prob(x).shape == (3,)
    with pytest.raises(AssertionError, match="inverted"):
        both.log_prob(x.clone())


def test_no_stale_value_after_a_step():
    density = far()
    both = density.distribution()
    x = both.rsample((3,)).detach()
    before = both.log_prob(x)
    perturb(density, 0.1)
    after = both.log_prob(x)
    assert (before - after).abs().max() > 1e-4
    torch.testing.assert_close(after, density.log_prob(x), rtol=1e-3, atol=1e-4)


def test_copies():
    both = far().distribution()
    both.sample((2,))
    for other in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        torch.testing.assert_close(other.log_prob(torch.zeros(2)), both.log_prob(torch.zeros(2)))
