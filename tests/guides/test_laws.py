"""The first law: at the start, and with no layers, a flow guide *is* Pyro's normal guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, disturb, mixed
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    init_to_mean,
    init_to_sample,
    init_to_value,
)

from pyro_nfvi import AutoFlow
from pyro_nfvi.errors import ModelWarning, OptionError
from pyro_nfvi.flows import Chain, DiagonalAffine, Permute, Planar
from pyro_nfvi.flows._autoregressive import iaf
from pyro_nfvi.flows._base import Inverse


def permuted(dim):
    return Chain(Permute.random(dim, seed=1), iaf(dim), Permute.reversal(dim), Planar(dim))


GUIDES = {
    **OURS,
    "no layers": lambda model, **options: AutoFlow(model, flow=None, **options),
    "num_flows=0": lambda model, **options: OURS["AutoIAF"](model, num_flows=0, **options),
    "formula": lambda model, **options: AutoFlow(model, "iaf*2|planar*4|radial", **options),
    "permuted": lambda model, **options: AutoFlow(model, permuted, **options),
    "base": lambda model, **options: AutoFlow(
        model, base=dist.Normal(torch.zeros(15), 1.0).to_event(1), **options
    ),
}
VECTORISED = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2}
JIT = {"ignore_jit_warnings": True}
ELBOS = {
    "Trace": Trace_ELBO,
    "Trace, 3 vectorised": lambda: Trace_ELBO(**VECTORISED),
    "TraceGraph": TraceGraph_ELBO,
    "TraceGraph, 3 vectorised": lambda: TraceGraph_ELBO(**VECTORISED),
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceMeanField, 3 vectorised": lambda: TraceMeanField_ELBO(**VECTORISED),
    "TraceEnum": lambda: TraceEnum_ELBO(max_plate_nesting=2),
    "TraceEnum, 3 vectorised": lambda: TraceEnum_ELBO(**VECTORISED),
    "Renyi": lambda: RenyiELBO(alpha=0.5, num_particles=3),
    "Renyi, 3 vectorised": lambda: RenyiELBO(alpha=0.5, **VECTORISED),
}
JIT_ELBOS = {
    "JitTrace": lambda: JitTrace_ELBO(**JIT),
    "JitTrace, 3 vectorised": lambda: JitTrace_ELBO(**JIT, **VECTORISED),
    "JitTraceGraph": lambda: JitTraceGraph_ELBO(**JIT),
    "JitTraceMeanField": lambda: JitTraceMeanField_ELBO(**JIT),
    "JitTraceEnum": lambda: JitTraceEnum_ELBO(max_plate_nesting=2, **JIT),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")


def loss_and_grads(guide, elbo, repeats=2):
    """Loss and gradients from fixed noise; the second time, as compiling draws too."""
    pyro.set_rng_seed(1)
    with pyro.get_param_store().scope():
        guide()
        for _ in range(repeats):
            guide.zero_grad()
            pyro.set_rng_seed(2)
            loss = elbo.loss_and_grads(mixed, guide)
        names = ("loc", "scale_unconstrained", "scale_tril_unconstrained")
        grads = {
            name: parameter.grad.clone()
            for name, parameter in guide.named_parameters()
            if name in names
        }
        return loss, grads


@pytest.fixture(scope="module")
def expected():
    """Pyro's own loss and gradients, each computed once."""
    found = {}

    def get(guide_class, name, elbo):
        if (guide_class, name) not in found:
            found[guide_class, name] = loss_and_grads(guide_class(mixed), elbo)
        return found[guide_class, name]

    return get


def check_equal(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    assert set(found[1]) == set(wanted[1]) >= {"loc", "scale_unconstrained"}
    for name, grad in wanted[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("elbo", ELBOS)
def test_starts_as_a_diagonal_normal(guide, elbo, expected):
    wanted = expected(AutoDiagonalNormal, elbo, ELBOS[elbo]())
    check_equal(loss_and_grads(GUIDES[guide](mixed), ELBOS[elbo]()), wanted)


@pytest.mark.parametrize(
    ("guide", "elbo"),
    # One Jit ELBO is enough for the other flows: each trace stays in memory, by 30 MB.
    [("AutoIAF", elbo) for elbo in JIT_ELBOS]
    + [("AutoPlanar", "JitTrace"), ("AutoRadial", "JitTrace"), ("AutoSylvester", "JitTrace")],
)
def test_starts_as_a_diagonal_normal_under_jit(guide, elbo, expected):
    wanted = expected(AutoDiagonalNormal, elbo, JIT_ELBOS[elbo]())
    check_equal(loss_and_grads(GUIDES[guide](mixed), JIT_ELBOS[elbo]()), wanted)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("elbo", ["Trace", "Trace, 3 vectorised", "TraceMeanField", "Renyi"])
def test_full_outer_starts_as_a_multivariate_normal(guide, elbo, expected):
    wanted = expected(AutoMultivariateNormal, elbo, ELBOS[elbo]())
    found = loss_and_grads(GUIDES[guide](mixed, outer="full"), ELBOS[elbo]())
    check_equal(found, wanted)
    assert "scale_tril_unconstrained" in found[1]


@pytest.mark.parametrize("guide", ["no layers", "num_flows=0"])
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_without_layers_it_stays_one_wherever_the_parameters_go(guide, outer):
    classes = {"diagonal": AutoDiagonalNormal, "full": AutoMultivariateNormal}
    found = []
    for build in (classes[outer], lambda model: GUIDES[guide](model, outer=outer)):
        pyro.set_rng_seed(1)
        with pyro.get_param_store().scope():
            elbo = Trace_ELBO(**VECTORISED)
            one = build(mixed)
            one()
            disturb(one, 0.5)
            pyro.set_rng_seed(3)
            loss = elbo.loss_and_grads(mixed, one)
            found.append((loss, {name: p.grad for name, p in one.named_parameters()}))
    check_equal(found[1], found[0])


@pytest.mark.parametrize("guide", GUIDES)
def test_consumes_the_same_noise_as_pyros(guide):
    states = []
    for build in (AutoDiagonalNormal, GUIDES[guide]):
        pyro.set_rng_seed(1)
        with pyro.get_param_store().scope():
            one = build(mixed)
            one()
            one()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("init", ["default", "mean", "sample", "value"])
def test_median_at_the_start_is_exactly_the_initial_location(guide, init):
    options = {}
    if init != "default":
        point = {
            "a": torch.tensor(0.7),
            "c": torch.tensor(2.5),
            "d": torch.tensor([0.2, 0.3, 0.5]),
        }
        options["init_loc_fn"] = {
            "mean": init_to_mean,
            "sample": init_to_sample,
            "value": init_to_value(values=point),
        }[init]
    one = GUIDES[guide](mixed, **options).setup()
    loc, scale = one._loc_scale()
    assert torch.equal(loc, one.latent.init_loc)
    start = {name: site["value"] for name, site in one.prototype_trace.iter_stochastic_nodes()}
    for name, value in one.median().items():
        torch.testing.assert_close(value, start[name], rtol=1e-12, atol=1e-12)
    for name in ("a", "b", "f"):  # unconstrained: nothing may be lost
        assert torch.equal(one.median()[name], start[name])
    if init == "value":
        assert one.median()["a"] == 0.7
    # One sd of the fixed points differs from that of the normal by their spacing.
    torch.testing.assert_close(scale, torch.full_like(scale, 0.1), rtol=2e-3, atol=0)


def test_a_base_of_another_dtype_is_an_error():
    base = dist.Normal(torch.zeros(15, dtype=torch.float32), 1.0).to_event(1)
    for flow in (None, "iaf"):
        with pytest.raises(OptionError, match="torch.float64.*got torch.float32"):
            AutoFlow(mixed, flow, base=base).setup()


def test_no_start_at_infinity():
    def model():
        pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0)))

    with pytest.warns(ModelWarning, match="'tau' is not finite.*the unconstrained origin"):
        guide = AutoFlow(model, init_loc_fn=init_to_mean).setup()
    assert guide.latent.init_loc.tolist() == [0.0]


#: Base, and half the width of the central 68.27 % of each coordinate.
BASES = {
    "normal": lambda: (dist.Normal(torch.zeros(15), 1.0).to_event(1), 1.0),
    "laplace": lambda: (dist.Laplace(torch.zeros(15), 1.0).to_event(1), 1.148),
    "student": lambda: (dist.StudentT(torch.full((15,), 4.0)).to_event(1), 1.142),
    "gumbel": lambda: (dist.Gumbel(torch.zeros(15), 1.0).to_event(1), 1.148),
    "multivariate": lambda: (
        dist.MultivariateNormal(torch.zeros(15), torch.eye(15) + 0.5),
        1.5**0.5,
    ),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("flow", ["iaf*2", None])
def test_median_and_spread_with_another_base(base, flow):
    distribution, half_width = BASES[base]()
    one = AutoFlow(mixed, flow, base=distribution).setup()
    loc, scale = one._loc_scale()
    centre = -math.log(math.log(2)) if base == "gumbel" else 0.0
    torch.testing.assert_close(loc, one.latent.init_loc + 0.1 * centre, rtol=0, atol=1e-7)
    # Half the central 68.27 %; 2048 draws and their mirror images know it to about 2 %.
    torch.testing.assert_close(scale, torch.full_like(scale, 0.1 * half_width), rtol=0.1, atol=0)
    draws = one.sample_posterior(2000)
    torch.testing.assert_close(one.log_prob(draws), one.log_prob(draws), rtol=0, atol=0)
    assert one.median()["a"] == pytest.approx(float(draws["a"].median()), abs=0.02)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 2.0])
def test_init_scale_is_the_spread_also_when_tiny_and_in_float32(scale):
    torch.set_default_dtype(torch.float32)
    found = AutoFlow(mixed, init_scale=scale).setup()._loc_scale()[1]
    torch.testing.assert_close(found, torch.full_like(found, scale), rtol=3e-3, atol=0)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_median_is_the_half_quantile_and_quantiles_are_those_of_draws(guide, outer):
    one = GUIDES[guide](mixed, outer=outer).setup()
    disturb(one, 0.2)
    quantiles, median = one.quantiles([0.1, 0.5, 0.9]), one.median()
    draws = one.sample_posterior(4000)
    for name, value in quantiles.items():
        assert torch.equal(value[1], median[name])
        if name == "d":  # a simplex is not monotone in its coordinates
            continue
        below = (draws[name].unsqueeze(1) < value).double().mean(0)
        levels = torch.tensor([0.1, 0.5, 0.9]).reshape(3, *[1] * (value.dim() - 1))
        # Binomial sd 0.008 at 4000 draws, 4097 points for the quantile: five of these, and the
        # seed is fixed.
        torch.testing.assert_close(below, levels.expand_as(below), rtol=0, atol=0.04)


def test_summaries_do_not_touch_the_random_state_and_repeat():
    one = AutoFlow(mixed).setup()
    disturb(one)
    state = torch.get_rng_state()
    first = (one.median(), one.quantiles([0.3]), one.mean(), one._loc_scale())
    again = (one.median(), one.quantiles([0.3]), one.mean(), one._loc_scale())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_mean_is_that_of_draws():
    one = AutoFlow(mixed, init_scale=0.5).setup()
    draws = one.sample_posterior(20000)
    for name, value in one.mean().items():
        # Standard error of 20000 draws below 0.01 here (c, a half-Cauchy, has sd 0.6).
        torch.testing.assert_close(value, draws[name].mean(0), rtol=0.02, atol=0.03)


@pytest.mark.parametrize(
    "flow",
    [
        permuted,
        lambda dim: Permute.random(dim, seed=4),
        lambda dim: Chain(Permute.random(dim, seed=2), Chain(Permute.random(dim, seed=3))),
        lambda dim: Inverse(Chain(Permute.random(dim, seed=2), Permute.random(dim, seed=3))),
        lambda dim: Chain(*[Permute.random(dim, seed=2)] * 2),
    ],
    ids=["mixed", "single", "nested", "inverse", "the same one twice"],
)
def test_permutations_are_undone(flow):
    one = AutoFlow(mixed, flow).setup()
    eps = torch.randn(7, 15)
    z, ladj = one.transport()(eps)
    torch.testing.assert_close(z, one.loc + one.scale * eps)
    torch.testing.assert_close(ladj, one.scale.log().sum().expand(7))


def test_an_outer_flow_of_your_own_stands_behind_the_flow():
    one = AutoFlow(mixed, "planar*2", outer=DiagonalAffine(15)).setup()
    assert not any(name.startswith(("loc", "scale")) for name, _ in one.named_parameters())
    eps = torch.randn(4, 15)
    z, _ = one.transport()(eps)
    # It starts where it starts: init_loc_fn and init_scale belong to the outer maps of ours.
    torch.testing.assert_close(z, eps)
    disturb(one)
    z, ladj = one.transport()(eps)
    jacobian = torch.autograd.functional.jacobian(lambda e: one.transport()(e)[0], eps[0])
    torch.testing.assert_close(ladj[0], torch.linalg.slogdet(jacobian)[1])
    assert one.median()["b"].shape == (2,)
