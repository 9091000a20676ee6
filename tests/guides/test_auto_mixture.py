"""The mixture guide: an exact density, unbiased gradients, and an AutoGuide as any other."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceEnum_ELBO

from pyro_nfvi import AutoMixture, FlowDensity
from pyro_nfvi.distributions import MixtureDensity
from pyro_nfvi.errors import OptionError, ParamStoreError, ShapeError
from pyro_nfvi.flows import Affine, make_flow
from pyro_nfvi.objectives import PathELBO

LOCS = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, -4.0]])
TRUE = torch.tensor([0.5, 0.3, 0.2])


def mixture_model():
    """Three Gaussians in the plane, whose weights are known."""
    parts = dist.Independent(dist.Normal(LOCS, 0.6), 1)
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(TRUE), parts))


def hierarchy(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    pyro.deterministic("twice", 2 * scale)


Y = torch.tensor([1.0, -1.0, 2.0])


def shaken(guide, size=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in guide.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter))
    return guide


def on_the_modes(flow=None, scale=0.6):
    guide = AutoMixture(mixture_model, 3, flow).setup()
    guide.start_at(LOCS, (scale * torch.eye(2)).expand(3, 2, 2), TRUE)
    return guide


# ------------------------------------------------------------------------------ the density


@pytest.mark.parametrize("flow", [None, "iaf*2", "planar*2", [None, "nsf*1", "iaf*1"]])
def test_density_is_the_mixture_and_integrates_to_one(flow):
    torch.set_default_dtype(torch.float64)
    guide = AutoMixture(mixture_model, 3, flow, init_spread=2.0, init_scale=0.7).setup()
    density = shaken(guide, 0.15).density()
    line = torch.linspace(-20, 20, 251)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_q = density.log_prob(z)
        by_hand = sum(
            float(w) * part.log_prob(z).exp() for w, part in zip(guide.weights, density._members)
        )
    torch.testing.assert_close(log_q.exp(), by_hand)
    # Nearly smooth (splines) on a grid of 0.16, and no mass beyond 20.
    assert float(log_q.exp().sum()) * 0.16**2 == pytest.approx(1.0, abs=5e-3)
    eps = density.sample_base((3, 5))
    assert eps.shape == (3, 5, 3)
    with torch.no_grad():
        z, log_q = density.push(eps)
        torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(density.draw(eps), z)
    _, _, score = density.push_with_score(eps)
    point = z.requires_grad_()
    (exact,) = torch.autograd.grad(density.log_prob(point).sum(), point)
    torch.testing.assert_close(score, exact)


def test_draws_have_the_weights_of_the_components():
    density = on_the_modes().density()
    chosen = density.choose(density.sample_base(20_000))
    shares = torch.bincount(chosen, minlength=3) / 20_000
    # Standard errors of at most 0.0036: five of each, one false alarm in 500,000.
    assert bool(((shares - TRUE).abs() < 0.018).all())
    assert bool((density.responsibilities(LOCS).argmax(-1) == torch.arange(3)).all())


def test_the_path_gradient_is_zero_at_the_target():
    torch.set_default_dtype(torch.float64)
    guide = AutoMixture(mixture_model, 3).setup()
    guide.start_at(LOCS.double(), (0.6 * torch.eye(2)).expand(3, 2, 2), TRUE.double())
    density = guide.density()
    parts = dist.Independent(dist.Normal(LOCS.double(), 0.6), 1)
    exact = dist.MixtureSameFamily(dist.Categorical(TRUE.double()), parts)
    estimate = PathELBO()(density, exact.log_prob, density.sample_base(32))
    estimate.surrogate.backward()
    assert all(float(p.grad.abs().max()) < 1e-6 for p in guide.parts.parameters())
    assert abs(float(estimate.bound)) < 1e-6


def test_points_where_no_component_can_be_inverted_have_no_density():
    flow = make_flow("affine", dim=1)
    density = MixtureDensity([FlowDensity(flow), FlowDensity(flow)], torch.zeros(2))
    assert density.log_prob(torch.tensor([torch.nan])).tolist() == -math.inf


def test_errors_of_the_density():
    part = FlowDensity(Affine(torch.zeros(2), torch.ones(2)))
    other = FlowDensity(Affine(torch.zeros(3), torch.ones(3)))
    based = FlowDensity(part.flow, dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for parts, logits in [
        ([], torch.zeros(0)),
        ([part], torch.zeros(2)),
        ([part, other], torch.zeros(2)),
        ([based], torch.zeros(1)),
    ]:
        with pytest.raises(OptionError, match="MixtureDensity needs"):
            MixtureDensity(parts, logits)
    with pytest.raises(ShapeError, match="one coordinate more"):
        MixtureDensity([part], torch.zeros(1)).push(torch.zeros(4, 2))


# --------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_the_gradient_of_svi_is_unbiased_for_weights_and_places(kind):
    # A constant of 200 nats in the log joint is what the baseline has to take out.
    torch.set_default_dtype(torch.float64)

    def model():
        mixture_model()
        pyro.factor("constant", torch.tensor(200.0))

    guide = AutoMixture(model, 3).setup()
    locs = LOCS.double() + torch.tensor([0.4, -0.3])
    guide.start_at(locs, (0.5 * torch.eye(2)).expand(3, 2, 2), torch.tensor([0.2, 0.3, 0.5]))
    parts = dist.Independent(dist.Normal(LOCS.double(), 0.6), 1)
    exact = dist.MixtureSameFamily(dist.Categorical(TRUE.double()), parts)

    # The exact gradient of the bound, stratified: each component with the same many draws.
    density = guide.density()
    eps = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(3))
    bound = 0.0
    for k, part in enumerate(density._members):
        z = part.flow(eps)[0]
        weight = density.log_weights[k].exp()
        bound = bound + weight * (exact.log_prob(z) - density.log_prob(z)).mean()
    (-bound).backward()
    wanted = {name: p.grad.clone() for name, p in guide.named_parameters()}
    assert float(wanted["logits"].abs().max()) > 0.05

    pyro.set_rng_seed(0)
    elbo = kind(num_particles=200, vectorize_particles=True)
    repeats = []
    for _ in range(150):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide)
        repeats.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
    found = torch.stack(repeats)
    mean, error = found.mean(0), found.std(0) / len(repeats) ** 0.5
    away = (mean - torch.cat([wanted[n].flatten() for n, _ in guide.named_parameters()])).abs()
    # 18 numbers, each within 4.5 standard errors: one false alarm in 8,000 (the truth has a
    # Monte-Carlo error too, of a fifth of that).
    assert bool((away < 4.5 * error + 0.004).all())
    # Without the baseline the standard error of the weights would be 200 * 0.5 / sqrt(30,000).
    names = [name for name, p in guide.named_parameters() for _ in range(p.numel())]
    assert all(float(e) < 0.05 for e, name in zip(error, names) if name == "logits")


@pytest.mark.slow
def test_svi_learns_the_weights():
    pyro.set_rng_seed(0)
    guide = on_the_modes()
    guide.set_weights(torch.tensor([0.1, 0.1, 0.8]))
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = SVI(mixture_model, guide, pyro.optim.ClippedAdam({"lr": 0.06, "lrd": 0.97}), elbo)
    for _ in range(120):
        svi.step()
    # The exact posterior is in the family: noise vanishes there.
    assert float((guide.weights - TRUE).abs().max()) < 0.03


# ----------------------------------------------------------------------------- an AutoGuide


def test_it_works_wherever_a_pyro_guide_does():
    pyro.set_rng_seed(0)
    guide = AutoMixture(hierarchy, 2, "iaf*1")
    svi = SVI(hierarchy, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step(Y))
    before = [p.detach().clone() for p in guide.parameters()]
    for _ in range(3):
        assert math.isfinite(svi.step(Y))
    moved = [not torch.equal(p, old) for p, old in zip(guide.parameters(), before)]
    assert sum(moved) > len(moved) / 2
    assert guide.num_components == 2
    draws = guide.sample_posterior((4, 5), Y)
    assert draws["mu"].shape == (4, 5, 3)
    assert bool((draws["scale"] > 0).all())
    assert guide.sample_posterior(3, Y, deterministic=True)["twice"].shape == (3,)
    assert guide.log_prob(draws).shape == (4, 5)
    assert Predictive(hierarchy, guide=guide, num_samples=4)(Y)["mu"].shape[0] == 4
    levels = guide.quantiles([0.1, 0.5, 0.9])["mu"]
    assert bool((levels.diff(dim=0) > 0).all())
    torch.testing.assert_close(guide.median()["mu"], levels[1])
    assert guide.mean()["scale"].shape == ()
    trace = pyro.poutine.trace(guide).get_trace(Y)
    values = {name: trace.nodes[name]["value"] for name in ("scale", "mu")}
    # The trace's own density and the guide's are the same.
    scored = trace.log_prob_sum()
    torch.testing.assert_close(guide.log_prob(values), scored, rtol=1e-4, atol=1e-4)


def test_jit_draws_every_component():
    guide = on_the_modes()
    elbo = JitTrace_ELBO(num_particles=100, vectorize_particles=True, ignore_jit_warnings=True)
    svi = SVI(mixture_model, guide, pyro.optim.Adam({"lr": 1e-4}), elbo)
    losses = [svi.step() for _ in range(5)]
    # The evidence is 0 and the guide exact; one component alone would give its -log weight.
    assert all(abs(loss) < 0.05 for loss in losses)


def test_quantiles_are_those_of_the_mixture():
    guide = on_the_modes()
    levels = torch.tensor([0.2, 0.5, 0.8])
    found = guide.quantiles(levels)["z"][:, 0]
    cdf = (TRUE * dist.Normal(LOCS[:, 0], 0.6).cdf(found.unsqueeze(-1))).sum(-1)
    torch.testing.assert_close(cdf, levels, atol=2e-3, rtol=0)


def test_copies_pickles_and_state(tmp_path):
    guide = shaken(AutoMixture(hierarchy, 2, "iaf*1").setup(Y))
    points = guide.sample_posterior(4, Y)
    expected = guide.log_prob(points)
    clone = copy.deepcopy(guide)
    torch.testing.assert_close(clone.log_prob(points), expected)
    again = pickle.loads(pickle.dumps(guide))
    torch.testing.assert_close(again.log_prob(points), expected)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    with pyro.get_param_store().scope():
        other = AutoMixture(hierarchy, 2, "iaf*1").setup(Y)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other.log_prob(points), expected)
    with torch.no_grad():
        clone._logits().add_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(guide.log_prob(points), expected)
    doubled = guide.double()
    assert doubled.sample_posterior(2, Y)["mu"].dtype == torch.float64


def test_the_param_store_continues_or_refuses():
    guide = shaken(AutoMixture(hierarchy, 2).setup(Y))
    guide(Y)
    points = guide.sample_posterior(3, Y)
    second = AutoMixture(hierarchy, 2).setup(Y)
    torch.testing.assert_close(second.log_prob(points), guide.log_prob(points))
    with pytest.raises(ParamStoreError):
        AutoMixture(hierarchy, 3).setup(Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    def model():
        zero = torch.zeros((), dtype=dtype)
        pyro.sample("x", dist.Normal(zero, zero + 1))

    guide = AutoMixture(model, 2, "nsf-ar").setup()
    assert guide.sample_posterior(3)["x"].dtype == dtype
    assert guide.log_prob({"x": torch.zeros((), dtype=dtype)}).dtype == dtype


def test_options_are_checked():
    for options in (
        {"num_components": 0},
        {"num_components": 2.0},
        {"flow": ["iaf*1"]},
        {"flow": make_flow("affine", dim=2)},
        {"flow": "no such flow"},
        {"init_spread": -1.0},
        {"init_scale": 0.0},
    ):
        with pytest.raises(OptionError):
            AutoMixture(mixture_model, **options)
    guide = AutoMixture(mixture_model).setup()
    with pytest.raises(OptionError, match="positive numbers"):
        guide.set_weights(torch.tensor([1.0, -1.0]))
    with pytest.raises(OptionError, match="not one map"):
        guide.transport()
