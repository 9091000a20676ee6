"""Stochastic normalizing flows: weights are exact, and bridges are crossed."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import DiagonalNormal, Langevin, Metropolis, PathSampler
from pyro_nfvi.errors import DivergedError, OptionError, ShapeError
from pyro_nfvi.flows import DiagonalAffine, make_flow
from pyro_nfvi.testing._case import perturb

LOG_Z = 1.7


def normal(z):
    """N((1, 0), diag(0.5, 2)^2), times e^1.7."""
    sd = z.new_tensor([0.5, 2.0])
    t = (z - z.new_tensor([1.0, 0.0])) / sd
    return LOG_Z - 0.5 * t.square().sum(-1) - math.log(2 * math.pi) - sd.log().sum()


LAYERS = {
    "langevin": lambda: [Langevin(step_size=0.05)],
    "langevin tempered": lambda: [Langevin(step_size=0.05, beta=0.5)],
    "metropolis": lambda: [Metropolis(step_size=0.5)],
    "metropolis tempered": lambda: [Metropolis(step_size=0.5, beta=0.3)],
    "with flows": lambda: [
        perturb(make_flow("realnvp*2", 2), 0.2),
        Metropolis(beta=0.5),
        perturb(DiagonalAffine(2), 0.2),
        Langevin(),
    ],
}


@pytest.mark.stat
@pytest.mark.parametrize("name", LAYERS)
def test_weights_average_to_the_evidence(name):
    sampler = PathSampler(normal, LAYERS[name](), base=DiagonalNormal(2)).double()
    with torch.no_grad():
        z, log_w = sampler.sample(40_000, generator=torch.Generator().manual_seed(0))
    w = (log_w - LOG_Z).exp()
    error = w.std() / len(w) ** 0.5
    # Five standard errors: false-alarm rate 6e-7.
    assert abs(w.mean() - 1) < 5 * error
    assert error < 0.1
    # Weighted draws have the target's mean.
    mean = (w.unsqueeze(-1) * z).mean(0) / w.mean()
    assert mean[0].item() == pytest.approx(1, abs=0.1)
    # The bound is below.
    assert log_w.mean() < LOG_Z


def test_flow_layers_alone_are_a_flow_density():
    flow = perturb(make_flow("realnvp*2", 2), 0.3)
    sampler = PathSampler(normal, [flow])
    generator = torch.Generator().manual_seed(0)
    z, log_w = sampler.sample(5, generator=generator)
    eps, ladj = flow.inverse(z)
    expected = normal(z) - sampler.base.log_prob(eps) - ladj
    torch.testing.assert_close(log_w, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [Langevin(step_size=0.1), Metropolis(beta=0.5)])
def test_gradients_reach_all_before_the_layer(layer):
    flow = make_flow("affine", 2)
    sampler = PathSampler(normal, [flow, layer])
    bound = sampler.sample(64)[1].mean()
    gradients = torch.autograd.grad(bound, list(sampler.parameters()))
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.abs().max() > 0 for g in gradients)


def test_langevin_gradient_is_that_of_differences():
    flow, layer = DiagonalAffine(2), Langevin(step_size=0.1, num_steps=3)
    sampler = PathSampler(normal, [flow, layer]).double()

    def bound():
        return sampler.sample(16, generator=torch.Generator().manual_seed(0))[1].mean()

    (found,) = torch.autograd.grad(bound(), layer.log_step)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            layer.log_step += step
            values.append(bound().item())
            layer.log_step -= step
    assert found.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def double_well(z):
    """Two wells at x = +-2, a barrier of 8 nats between them."""
    x, y = z.unbind(-1)
    return -0.5 * (x.square() - 4).square() - 0.5 * y.square()


#: By the trapezoidal rule on [-6, 6]: the evidence, and the mass between the wells, |x| < 1.
WELLS_LOG_Z, WELLS_BRIDGE = 1.1724, 0.0033


def well_draws(n):
    """Draws of the double well, by inverting its distribution function on a grid."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-5, 5, 10_001)
    cdf = (-0.5 * (grid.square() - 4).square()).exp().cumsum(0)
    x = grid[torch.searchsorted(cdf, cdf[-1] * torch.rand(n, generator=generator))]
    x = x + 1e-3 * (torch.rand(n, generator=generator) - 0.5)  # off the grid, where values repeat
    return torch.stack([x, torch.randn(n, generator=generator)], -1)


def between(z):
    return (z[:, 0].abs() < 1).float().mean().item()


@pytest.mark.slow
def test_a_flow_leaves_a_bridge_and_chains_behind_it_do_not():
    torch.manual_seed(0)
    density = FlowDensity(make_flow("realnvp*4", 2, hidden_dim=16))
    density.fit(well_draws(4000), seed=0, progress=False, max_steps=500, lr=5e-3)
    base = DiagonalNormal(2)
    found = {}
    for name, layers in (("flow", []), ("chains", [Metropolis(step_size=0.7, num_steps=30)])):
        sampler = PathSampler(double_well, [density.flow, *layers], base=base)
        with torch.no_grad():
            z, log_w = sampler.sample(20_000, generator=torch.Generator().manual_seed(1))
        found[name] = between(z)
        evidence = torch.logsumexp(log_w, 0).item() - math.log(20_000)
        assert evidence == pytest.approx(WELLS_LOG_Z, abs=0.1)
        assert 0.4 < (z[:, 0] > 0).float().mean() < 0.6
    assert found["flow"] > 3 * WELLS_BRIDGE
    assert found["chains"] < 2 * WELLS_BRIDGE


@pytest.mark.slow
def test_trained_on_the_density_alone_a_flow_loses_a_well_and_this_does_not():
    found, right = {}, {}
    for name in ("flow", "paths"):
        torch.manual_seed(0)
        base = DiagonalNormal(2)
        with torch.no_grad():
            base.log_scale.fill_(0.7)
        chains = name == "paths"
        layers = [
            make_flow("realnvp*2", 2, hidden_dim=16),
            *[Metropolis(beta=0.1, step_size=1.0)] * chains,
            make_flow("realnvp*2", 2, hidden_dim=16),
            *[Metropolis(beta=0.5, step_size=0.5), Metropolis(step_size=0.5)] * chains,
        ]
        sampler = PathSampler(double_well, layers, base=base)
        sampler.fit(300, num_samples=128, lr=1e-2, seed=0, progress=False)
        with torch.no_grad():
            z, log_w = sampler.sample(8000, generator=torch.Generator().manual_seed(1))
        found[name] = torch.logsumexp(log_w, 0).item() - math.log(8000)
        right[name] = (z[:, 0] > 0).float().mean().item()
    assert found["flow"] == pytest.approx(WELLS_LOG_Z - math.log(2), abs=0.1)
    assert min(right["flow"], 1 - right["flow"]) < 0.01
    assert found["paths"] == pytest.approx(WELLS_LOG_Z, abs=0.15)
    assert 0.4 < right["paths"] < 0.6


def test_fit_gives_up_where_nothing_is_finite():
    sampler = PathSampler(lambda z: z.sum(-1) * math.nan, [DiagonalAffine(2)])
    with pytest.raises(DivergedError, match="30 of them without a finite gradient"):
        sampler.fit(50, progress=False)


def test_global_random_state_is_left_alone():
    sampler, state = PathSampler(normal, [DiagonalAffine(2), Langevin(), Metropolis()]), None
    state = torch.get_rng_state()
    sampler.fit(3, seed=0, progress=False)
    sampler.sample(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "make",
    [
        lambda: PathSampler(normal, []),
        lambda: PathSampler(normal, [torch.nn.Linear(2, 2)]),
        lambda: PathSampler(normal, [Metropolis()]),
        lambda: PathSampler(normal, [DiagonalAffine(2), DiagonalAffine(3)]),
        lambda: PathSampler(normal, [DiagonalAffine(2)], base=DiagonalNormal(3)),
        lambda: PathSampler(normal, [DiagonalAffine(2, 1)]),
        lambda: Metropolis(beta=0.0),
        lambda: Langevin(step_size=-1.0),
        lambda: Langevin(num_steps=0),
        lambda: Langevin(num_steps=1.5),
        lambda: Langevin(step_size="a"),
        lambda: PathSampler(3, [DiagonalAffine(2)]),
        lambda: PathSampler(normal, DiagonalAffine(2)),
        lambda: PathSampler(normal, 3),
        lambda: PathSampler(normal, [DiagonalAffine(2)], base=torch.distributions.Normal(0, 1)),
        lambda: PathSampler(normal, [DiagonalAffine(2)]).sample(2.5),
    ],
)
def test_mistakes_are_named(make):
    with pytest.raises(OptionError):
        make()


def test_a_target_with_an_edge_has_weights_of_zero_and_not_nan():
    def half(z):
        return torch.where(z[..., 0] > 0, -0.5 * z.square().sum(-1), -torch.inf)

    layers = [DiagonalAffine(1), Metropolis(num_steps=5)]
    sampler = PathSampler(half, layers)
    with torch.no_grad():
        _, log_w = sampler.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert not log_w.isnan().any()
    # Half a normal: sqrt(2 pi) / 2; the standard error of 20,000 weights is below 0.01.
    evidence = float(log_w.double().exp().mean())
    assert abs(evidence - math.sqrt(2 * math.pi) / 2) < 0.05


@pytest.mark.parametrize(
    ("target", "came"),
    [
        (lambda z: z.square().sum(-1, keepdim=True), r"\(7, 1\)"),
        (lambda z: z.square().sum(), r"got \(\)"),
        (lambda z: 0.0, "got float"),
    ],
)
@pytest.mark.parametrize("layer", [Langevin(), Metropolis(), DiagonalAffine(2)])
def test_a_target_of_another_shape_is_told(target, came, layer):
    sampler = PathSampler(target, [layer], base=DiagonalNormal(2))
    with pytest.raises(ShapeError, match=came):
        sampler.sample(7)


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 0}, {"num_samples": -5}, {"num_samples": 2.5}, {"lr": 0}, {"seed": "a"}],
)
def test_bad_options_of_fit_are_named(options):
    sampler = PathSampler(normal, [DiagonalAffine(2)])
    with pytest.raises(OptionError, match="needs"):
        sampler.fit(**{"num_steps": 3, "progress": False, **options})


def test_a_frozen_sampler_has_nothing_to_fit():
    sampler = PathSampler(normal, [DiagonalAffine(2)]).requires_grad_(False)
    with pytest.raises(OptionError, match="no parameter"):
        sampler.fit(3, progress=False)


def test_the_target_is_not_trained():
    target = FlowDensity(DiagonalAffine(2))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    sampler = PathSampler(target, [DiagonalAffine(2)])
    assert not {id(p) for p in target.parameters()} & {id(p) for p in sampler.parameters()}
    sampler.fit(5, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_layers_come_from_any_iterable():
    sampler = PathSampler(normal, (DiagonalAffine(2) for _ in range(2)))
    assert sampler.sample(3)[0].shape == (3, 2)


def test_a_fit_inside_no_grad_trains():
    sampler = PathSampler(normal, [DiagonalAffine(2)])
    with torch.no_grad():
        sampler.fit(5, progress=False)
    assert any(bool(p.any()) for p in sampler.parameters())


def test_langevin_without_a_gradient_says_what_to_do():
    sampler = PathSampler(lambda z: normal(z.detach()), [DiagonalAffine(2), Langevin()])
    with pytest.raises(OptionError, match="take Metropolis"):
        sampler.sample(3)
