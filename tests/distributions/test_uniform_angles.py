"""Densities of angles: on the circle, closed, and exact against a grid."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import VonMises, constraints

from pyro_nfvi import FlowDensity
from pyro_nfvi._pyro_model.constraints import support_of
from pyro_nfvi.distributions import PathSampler, UniformAngles
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.guides import AutoFlow
from pyro_nfvi.testing._case import perturb


def angles(formula, dim, scale=0.7, **options):
    flow = perturb(make_flow(formula, dim, **options), scale, torch.Generator().manual_seed(1))
    return FlowDensity(flow, UniformAngles(dim)).double()


def circle(n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * math.pi - math.pi


@pytest.mark.parametrize("formula", ["ncsf*2", "moebius*2"])
@pytest.mark.parametrize("dim", [1, 2])
def test_it_integrates_to_one_over_a_turn(formula, dim):
    # Slopes of Moebius maps are smooth, those of splines have kinks.
    n = 4000 if dim == 1 else 100 if "moebius" in formula else 400
    grid = torch.cartesian_prod(*[circle(n)] * dim).reshape(-1, dim)
    density = angles(formula, dim, 0.5, hidden_dim=8)
    with torch.no_grad():
        mass = density.log_prob(grid).exp().mean() * (2 * math.pi) ** dim
    assert abs(mass - 1) < 1e-3


@pytest.mark.parametrize("formula", ["ncsf*2", "moebius*2"])
def test_draws_are_one_turn_and_are_scored_as_drawn(formula):
    density = angles(formula, 3, 2.0)
    z, log_q = density.rsample_and_log_prob((500,))
    assert bool(((z >= -math.pi) & (z < math.pi)).all())
    torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(density.log_prob(z + 4 * math.pi), log_q, rtol=1e-7, atol=1e-7)
    point = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(density.log_prob(point).sum(), point)
    z, _, score = density.push_with_score(density.flow.inverse(point)[0].detach())
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-5)
    drawn = density.distribution().rsample((9,))
    assert bool((drawn.abs() <= math.pi).all())
    found = density.distribution().log_prob(drawn)
    torch.testing.assert_close(found, density.log_prob(drawn), rtol=1e-7, atol=1e-7)


def test_it_is_nowhere_but_at_numbers():
    density = angles("ncsf", 2)
    value = torch.tensor([[math.nan, 0.0], [math.inf, 0.0]], dtype=torch.float64)
    found = density.log_prob(value)
    assert found[0].isnan()
    assert found[1] == -math.inf


@pytest.mark.parametrize("formula", ["ncsf*2", "moebius*2"])
def test_it_learns_a_posterior_across_the_cut(formula):
    # The mass is on both sides of pi; on an interval it would be two modes.
    y = torch.tensor([2.9, -2.8, -3.0, 2.5], dtype=torch.float64)

    def log_joint(z):
        return VonMises(z, 3.0).log_prob(y).sum(-1) + VonMises(0.0, 0.5).log_prob(z).squeeze(-1)

    torch.manual_seed(0)
    density = FlowDensity(make_flow(formula, 1), UniformAngles(1)).double()
    steps = torch.optim.Adam(density.parameters(), lr=0.1)
    rate = torch.optim.lr_scheduler.LinearLR(steps, 1.0, 0.01, 300)
    for _ in range(300):
        z, log_q = density.rsample_and_log_prob((128,))
        steps.zero_grad()
        (log_q - log_joint(z)).mean().backward()
        steps.step()
        rate.step()
    grid = circle(2000)
    joint = log_joint(grid.unsqueeze(-1))
    log_p = joint - joint.logsumexp(0) + math.log(2000 / (2 * math.pi))
    with torch.no_grad():
        log_q = density.log_prob(grid.unsqueeze(-1))
    assert (log_q.exp() * (log_q - log_p)).mean() * 2 * math.pi < 0.05  # nats; 8.6 at the start


def test_it_fits_data_on_the_circle():
    torch.manual_seed(0)
    x = dist.VonMises(torch.tensor([math.pi, 1.0]), 4.0).sample((1000,))
    density = FlowDensity(make_flow("ncsf*2", 2, hidden_dim=8), UniformAngles(2))
    density.fit(x, max_steps=150, lr=0.03, progress=False)
    exact = VonMises(torch.tensor([math.pi, 1.0]), 4.0).log_prob(x).sum(-1).mean()
    assert abs(density.log_prob(x).mean() - exact) < 0.1


def test_in_a_model_it_has_the_support_of_one_turn():
    site = angles("ncsf", 2).distribution()
    assert support_of(site).base_constraint.upper_bound == math.pi
    reals = support_of(FlowDensity(make_flow("ncsf", 2)).distribution())
    assert reals.base_constraint is constraints.real
    assert pyro.sample("x", site).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlowDensity(make_flow("nsf|ncsf", 2), UniformAngles(2)), "Coupling moves real"),
        (lambda: FlowDensity(make_flow("iaf", 2), UniformAngles(2)), "'ncsf' or 'moebius'"),
        (lambda: PathSampler(torch.sum, [make_flow("ncsf", 2)], base=UniformAngles(2)), "angles"),
        (
            lambda: AutoFlow(lambda: pyro.sample("x", dist.Normal(0, 1)), base=UniformAngles)(),
            "real numbers",
        ),
        (lambda: UniformAngles(0), "dim"),
    ],
)
def test_where_it_does_not_belong(build, message):
    with pytest.raises(OptionError, match=message):
        build()
