"""The guides in Pyro's machinery: ELBOs, predictions, lists of guides, handlers, NeuTra."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, disturb, fit, linear, mixed, same_noise
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    WeighedPredictive,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoIAFNormal,
    AutoNormal,
    init_to_value,
)
from pyro.infer.reparam import NeuTraReparam

from pyro_nfvi import AutoFlow, AutoIAF, AutoPlanar

each_guide = pytest.mark.parametrize("guide_class", OURS.values())
pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
Y = torch.tensor([[2.5, -0.5], [1.5, -1.5], [2.0, -1.0], [2.3, -0.7]])
PARTICLES = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 2}
JIT = {"ignore_jit_warnings": True}
ELBOS = {
    "Trace": Trace_ELBO(),
    "Trace vectorised": Trace_ELBO(**PARTICLES),
    "TraceGraph": TraceGraph_ELBO(**PARTICLES),
    "TraceMeanField": TraceMeanField_ELBO(**PARTICLES),
    "TraceEnum": TraceEnum_ELBO(**PARTICLES),
    "Renyi": RenyiELBO(alpha=0.5, **PARTICLES),
}
JIT_ELBOS = {
    "JitTrace": lambda: JitTrace_ELBO(**JIT, **PARTICLES),
    "JitTraceGraph": lambda: JitTraceGraph_ELBO(**JIT, **PARTICLES),
    "JitTraceMeanField": lambda: JitTraceMeanField_ELBO(**JIT, **PARTICLES),
    "JitTraceEnum": lambda: JitTraceEnum_ELBO(**JIT, **PARTICLES),
}


def check_trains(guide, elbo):
    guide()
    start = [parameter.detach().clone() for parameter in guide.parameters()]
    losses = fit(mixed, guide, steps=3, elbo=elbo)
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = [not torch.equal(a, b) for a, b in zip(start, guide.parameters())]
    # The weights of a net's first layer get a gradient as soon as its last layer is not zero;
    # masks leave those of a first output out of the map for good, so whole tensors are compared.
    assert all(moved)


@each_guide
@pytest.mark.parametrize("elbo", ELBOS)
def test_every_parameter_trains(guide_class, elbo):
    check_trains(guide_class(mixed), ELBOS[elbo])


@pytest.mark.parametrize(
    ("guide_class", "elbo"), [(AutoPlanar, "JitTrace"), *((AutoIAF, elbo) for elbo in JIT_ELBOS)]
)
def test_every_parameter_trains_under_jit(guide_class, elbo):
    check_trains(guide_class(mixed), JIT_ELBOS[elbo]())


@pytest.mark.parametrize(
    "guide_class",
    [
        one if name in ("AutoIAF", "AutoPlanar") else pytest.param(one, marks=pytest.mark.slow)
        for name, one in OURS.items()
    ],
)
def test_elbo_module_with_a_torch_optimiser_two_guides_in_one_process(guide_class):
    for shift in (0.0, 3.0):
        guide = guide_class(linear)
        module = Trace_ELBO(**PARTICLES)(linear, guide)
        module(Y + shift)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(120):
            optimiser.zero_grad()
            module(Y + shift).backward()
            optimiser.step()
        mean = guide.median()["mean"]
        torch.testing.assert_close(mean, Y.mean(0) + shift, rtol=0, atol=0.8)


def test_elbo_module_without_a_first_call():
    guide = AutoFlow(linear).setup(Y)
    module = Trace_ELBO()(linear, guide)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in guide.parameters())
    module(Y).backward()
    assert all(p.grad is not None for p in guide.parameters())


@each_guide
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(guide_class, parallel):
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", slope * x)
            return pyro.sample("y", dist.Normal(mean, sd), obs=y)

    x = torch.linspace(-1, 1, 6)
    guide = guide_class(model)
    fit(model, guide, x, 2 * x, steps=2)
    predict = Predictive(model, guide=guide, num_samples=11, parallel=parallel)
    draws = predict(x)
    assert draws["y"].shape == draws["mean"].shape == (11, 6)
    # Another number of points: the latents stay as they are.
    draws = predict(torch.linspace(-1, 1, 9))
    assert draws["y"].shape == (11, 9)
    assert draws["slope"].numel() == 11
    expected = (draws["slope"].reshape(11, 1) * torch.linspace(-1, 1, 9)).reshape(11, 9)
    torch.testing.assert_close(draws["mean"].reshape(11, 9), expected)


def test_weighed_predictive_weights_are_importance_weights():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, sd), obs=y)

    y = Y[:, 0]
    guide = AutoIAF(model).setup(y)
    disturb(guide, 0.2)
    found = WeighedPredictive(model, guide=guide, num_samples=6, parallel=True)(y)
    draws = {name: found.samples[name].reshape(6) for name in ("mean", "sd")}
    joint = torch.stack(
        [
            poutine.trace(poutine.condition(model, {k: v[i] for k, v in draws.items()}))
            .get_trace(y)
            .log_prob_sum()
            for i in range(6)
        ]
    )
    torch.testing.assert_close(
        found.log_weights, joint - guide.log_prob(draws), rtol=1e-4, atol=1e-4
    )


@each_guide
def test_guide_list_of_five_parts(guide_class):
    guide = AutoGuideList(mixed)
    guide.append(guide_class(poutine.block(mixed, expose=["a", "b"])))
    guide.append(AutoNormal(poutine.block(mixed, expose=["c"])))
    guide.append(guide_class(poutine.block(mixed, expose=["d", "e"])))
    guide.append(AutoDelta(poutine.block(mixed, expose=["f"])))
    fit(mixed, guide, steps=2)
    names = {name for name in pyro.get_param_store().keys() if ".loc" in name or "$$$" in name}
    assert any(name.startswith("AutoGuideList.0.flow") for name in names)
    assert any(name.startswith("AutoGuideList.2.flow") for name in names)
    median = guide.median()
    assert {name: tuple(value.shape) for name, value in median.items()} == {
        "a": (),
        "b": (2,),
        "c": (),
        "d": (3,),
        "e": (3,),
        "f": (2, 3),
    }
    for part in (guide[0], guide[2]):
        for name, value in part.quantiles([0.2, 0.5]).items():
            torch.testing.assert_close(value[1], median[name])
    draws = Predictive(mixed, guide=guide, num_samples=5, parallel=True)()
    assert draws["f"].shape[0] == 5


@each_guide
def test_handlers(guide_class):
    guide = guide_class(linear).setup(Y)

    def loss(model, guide):
        pyro.set_rng_seed(2)
        return Trace_ELBO().loss(model, guide, Y)

    plain = loss(linear, guide)
    scaled = loss(poutine.scale(linear, 3.0), poutine.scale(guide, 3.0))
    assert scaled == pytest.approx(3 * plain, rel=1e-5)
    # Without the guide's terms what remains is the model's expectation.
    entropy = plain - loss(linear, poutine.mask(guide, mask=False))
    pyro.set_rng_seed(2)
    drawn = {name: value.detach() for name, value in guide(Y).items()}
    assert entropy == pytest.approx(guide.log_prob(drawn).item(), rel=1e-4)
    assert loss(poutine.mask(linear, mask=False), poutine.mask(guide, mask=False)) == 0.0
    trace = poutine.trace(poutine.block(guide, hide=["sd"])).get_trace(Y)
    assert "sd" not in trace.nodes
    assert "mean" in trace.nodes
    assert poutine.trace(guide).get_trace(Y).nodes[f"_{guide_class.__name__}_latent"]["infer"] == {
        "is_auxiliary": True
    }
    # A guide replays, conditions and substitutes as any other.
    trace = poutine.trace(guide).get_trace(Y)
    again = poutine.trace(poutine.replay(guide, trace)).get_trace(Y)
    assert torch.equal(trace.nodes["mean"]["value"], again.nodes["mean"]["value"])
    # Scored through the inverse, as the sample is not the guide's own.
    torch.testing.assert_close(trace.log_prob_sum(), again.log_prob_sum(), rtol=1e-3, atol=1e-3)


@each_guide
def test_plates_around_the_guide(guide_class):
    guide = guide_class(mixed).setup()
    disturb(guide, 0.2)
    with pyro.plate("particles", 5, dim=-3), pyro.plate("more", 4, dim=-4):
        drawn = guide()
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "a": (4, 5, 1, 1),
        "b": (4, 5, 1, 1, 2),
        "c": (4, 5, 1, 1),
        "d": (4, 5, 1, 1, 3),
        "e": (4, 5, 1, 3),
        "f": (4, 5, 2, 3),
    }
    flat = {
        name: value.detach().reshape(4, 5, *guide.latent.sites[name].shape)
        for name, value in drawn.items()
    }
    assert guide.log_prob(flat).shape == (4, 5)


def test_poutine_block_leaves_sites_to_others():
    guide = AutoFlow(poutine.block(mixed, hide=["c", "d"])).setup()
    assert set(guide.latent.sites) == {"a", "b", "e", "f"}
    assert set(guide()) == {"a", "b", "e", "f"}


# --------------------------------------------------------------------------- enumeration
DATA = torch.tensor([-2.1, -1.9, -2.0, 2.2, 1.8, 2.1, 1.9])


def mixture(y, **infer):
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    low = pyro.sample("low", dist.Normal(-1.0, 3.0))
    high = pyro.sample("high", dist.Normal(1.0, 3.0))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(weight), infer=infer)
        pyro.sample("y", dist.Normal(torch.where(kind > 0, high, low), 1.0), obs=y)


def marked(y):
    mixture(y, enumerate="parallel")


@pytest.mark.parametrize("how", ["mark", "config_enumerate", "block"])
@pytest.mark.parametrize("particles", [1, 3])
def test_enumerated_sites_are_left_to_the_elbo(how, particles):
    """The loss is that of Pyro's guide on the blocked model, from the same noise."""
    model = {"mark": marked, "config_enumerate": config_enumerate(mixture), "block": marked}[how]
    blocked = poutine.block(marked, hide=["kind"])
    elbo = TraceEnum_ELBO(
        max_plate_nesting=1, num_particles=particles, vectorize_particles=particles > 1
    )
    # Looking for medians draws from every site, "kind" too, where it is not blocked.
    point = {"weight": 0.4, "low": -1.5, "high": 1.0}
    start = init_to_value(values={name: torch.tensor(value) for name, value in point.items()})
    found = []
    for guide in (
        AutoFlow(blocked if how == "block" else model, flow="planar*2", init_loc_fn=start),
        AutoDiagonalNormal(blocked, init_loc_fn=start),
    ):
        guide(DATA)
        pyro.set_rng_seed(1)
        found.append(elbo.loss(model, guide, DATA))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@each_guide
@pytest.mark.parametrize("jit", [False, True])
def test_mixture_trains(guide_class, jit):
    guide = guide_class(marked)
    kind = JitTraceEnum_ELBO if jit else TraceEnum_ELBO
    options = JIT if jit else {}
    losses = fit(marked, guide, DATA, steps=10, elbo=kind(max_plate_nesting=1, **options))
    assert torch.tensor(losses).isfinite().all()
    draws = guide.sample_posterior(10)
    assert "kind" not in draws


def test_guide_list_with_a_discrete_part():
    guide = AutoGuideList(mixture)
    guide.append(AutoIAF(poutine.block(mixture, hide=["kind"])))
    guide.append(AutoDiscreteParallel(poutine.block(mixture, expose=["kind"])))
    losses = fit(mixture, guide, DATA, steps=3, elbo=TraceEnum_ELBO(max_plate_nesting=1))
    assert torch.tensor(losses).isfinite().all()


# -------------------------------------------------------------------------------- NeuTra
def funnel():
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), (0.5 * scale).exp().unsqueeze(-1)).to_event(1))


@each_guide
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_neutra_keeps_the_joint_density(guide_class, outer):
    torch.set_default_dtype(torch.float64)
    guide = guide_class(funnel, outer=outer)
    guide()
    disturb(guide, 0.2)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    trace = poutine.trace(neutra.reparam(funnel)).get_trace()
    (name,) = [n for n in trace.nodes if n.endswith("_shared_latent")]
    eps = trace.nodes[name]["value"]
    z = neutra.transform(eps)
    values, ladj = guide.latent.constrain(z)
    plain = poutine.trace(poutine.condition(funnel, values)).get_trace().log_prob_sum()
    slope = torch.linalg.slogdet(torch.autograd.functional.jacobian(neutra.transform, eps))[1]
    torch.testing.assert_close(trace.log_prob_sum(), plain + ladj + slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guide_class", [AutoIAF, pytest.param(AutoPlanar, marks=pytest.mark.slow)])
def test_neutra_with_nuts(guide_class):
    guide = guide_class(funnel)
    fit(funnel, guide, steps=100)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    mcmc = MCMC(
        NUTS(neutra.reparam(funnel), max_tree_depth=3),
        num_samples=60,
        warmup_steps=40,
        disable_progbar=True,
    )
    mcmc.run()
    (name,) = mcmc.get_samples()
    draws = neutra.transform_sample(mcmc.get_samples()[name])
    assert draws["x"].shape == (60, 3)
    # 60 autocorrelated draws of N(0, 1): loose, to catch a wrong transform only.
    assert abs(draws["scale"].mean()) < 1.0
    assert 0.3 < draws["scale"].std() < 2.0


def test_stock_flow_guides_live_beside_ours():
    ours, pyros = AutoIAF(funnel), AutoIAFNormal(funnel, hidden_dim=[8])
    svi = SVI(funnel, pyros, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step()
    fit(funnel, ours, steps=2)
    svi.step()
    assert same_noise(ours)["x"].shape == (3,)
