"""Scores: against autograd, against known posteriors, and after changes of the parameters."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from guides.models import EXACT_SITES, FREE_SUPPORTS, OURS, Free, disturb, mixed
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_nfvi import AutoFlow
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import Chain, DiagonalAffine, LowerTriangular, Permute, Planar
from pyro_nfvi.flows._autoregressive import iaf

GUIDES = {
    **OURS,
    "full": lambda model, **options: AutoFlow(model, "planar*3", outer="full", **options),
    "sigmoid": lambda model, **options: AutoFlow(model, "iaf*2", gate="sigmoid", **options),
    "maf": lambda model, **options: AutoFlow(model, "maf*2", **options),
    "spline": lambda model: AutoFlow(model, T.spline),
    "affine_autoregressive": lambda model: AutoFlow(model, T.affine_autoregressive),
    "permuted": lambda model: AutoFlow(
        model, lambda dim: Chain(Permute.random(dim, 3), iaf(dim), Planar(dim))
    ),
    "outer": lambda model: AutoFlow(
        model, "iaf", outer=Chain(DiagonalAffine(3), LowerTriangular(3))
    ),
    "student": lambda model: AutoFlow(
        model, "planar*2", base=dist.StudentT(torch.full((3,), 5.0)).to_event(1)
    ),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def triple():
    """One coordinate in each of three supports."""
    x = pyro.sample("x", dist.Normal(torch.tensor(0.5), 1.0))
    pyro.sample("s", dist.LogNormal(x, 0.5))
    pyro.sample("u", dist.Beta(torch.tensor(2.0), 3.0))


def base_log_prob(guide, eps):
    return guide.density().base_log_prob(eps)


@pytest.mark.parametrize("guide", GUIDES)
def test_log_prob_is_the_change_of_variables(guide):
    one = GUIDES[guide](triple).setup()
    disturb(one, 0.3)
    eps = torch.randn(3)

    def values(noise):
        drawn, _ = one.latent.constrain(one.transport()(noise)[0])
        return torch.stack([drawn["x"], drawn["s"], drawn["u"]])

    with torch.no_grad():
        point = values(eps)
    slope = torch.autograd.functional.jacobian(values, eps)
    exact = base_log_prob(one, eps) - torch.linalg.slogdet(slope)[1]
    found = one.log_prob(dict(zip("xsu", point)))
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("guide", GUIDES)
def test_batches_and_gradients_of_log_prob(guide):
    one = GUIDES[guide](triple).setup()
    disturb(one, 0.3)
    draws = one.sample_posterior((4, 2))
    scores = one.log_prob(draws)
    assert scores.shape == (4, 2)
    single = one.log_prob({name: value[2, 1] for name, value in draws.items()})
    torch.testing.assert_close(scores[2, 1], single)
    # One more name does no harm, and broadcasting works.
    again = one.log_prob({**draws, "x": draws["x"][:1], "other": torch.ones(3)})
    torch.testing.assert_close(again[0], scores[0])
    scores.sum().backward()
    # Maximum likelihood works: every parameter that the density depends on gets a gradient.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())


def free_entries(jacobian, value, name):
    """Rows of the entries in whose measure the density is."""
    if name == "simplex":
        return jacobian[:-1]
    below = name.startswith(("corr", "unit_lower"))
    if value.dim() == 2:
        keep = torch.ones_like(value).tril(-1 if below else 0).bool()
        return jacobian[keep.reshape(-1)]
    return jacobian


@pytest.mark.parametrize("name", FREE_SUPPORTS)
@pytest.mark.parametrize("guide", ["AutoIAF", "AutoPlanar"])
def test_every_support(guide, name):
    def model():
        pyro.sample("site", Free(*FREE_SUPPORTS[name]))

    one = OURS[guide](model).setup()
    disturb(one, 0.2)
    eps = torch.randn(one.latent_dim)

    def value(noise):
        return one.latent.constrain(one.transport()(noise)[0])[0]["site"]

    with torch.no_grad():
        point = value(eps)
    assert FREE_SUPPORTS[name][0].check(point).all()
    jacobian = torch.autograd.functional.jacobian(value, eps).reshape(-1, len(eps))
    slope = torch.linalg.slogdet(free_entries(jacobian, point, name))[1]
    exact = base_log_prob(one, eps) - slope
    torch.testing.assert_close(one.log_prob({"site": point}), exact, rtol=1e-7, atol=1e-7)
    # What an ELBO sees is the same number.
    trace = poutine.trace(one).get_trace()
    trace.compute_log_prob()
    seen = one.log_prob({"site": trace.nodes["site"]["value"].detach()})
    torch.testing.assert_close(trace.log_prob_sum(), seen, rtol=1e-7, atol=1e-7)
    median, quantiles = one.median()["site"], one.quantiles([0.25, 0.75])["site"]
    assert FREE_SUPPORTS[name][0].check(median).all()
    assert quantiles.shape == (2, *median.shape)


@pytest.mark.parametrize("size", [3, 5])
def test_lkj(size):
    def model():
        pyro.sample("corr", dist.LKJCholesky(size, torch.tensor(2.0)))

    one = OURS["AutoIAF"](model).setup()
    draws = one.sample_posterior(50)
    joint = dist.LKJCholesky(size, torch.tensor(2.0)).log_prob(draws["corr"])
    assert (joint - one.log_prob(draws)).isfinite().all()
    assert one.latent_dim == size * (size - 1) // 2


@pytest.mark.parametrize("name", EXACT_SITES)
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_weights_are_constant_where_the_guide_is_exact(name, outer):
    distribution, loc, scale = EXACT_SITES[name]()

    def model():
        pyro.sample("site", distribution)

    one = AutoFlow(model, "planar*2", outer=outer).setup()
    with torch.no_grad():
        one.loc.copy_(torch.tensor(loc))
    one.scale = torch.tensor(scale)
    draws = one.sample_posterior(40)
    weights = distribution.log_prob(draws["site"]) - one.log_prob(draws)
    # Nothing is observed: the evidence is one.
    torch.testing.assert_close(weights, torch.zeros(40), rtol=0, atol=1e-7)
    particles = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 0}
    for elbo in (Trace_ELBO(**particles), RenyiELBO(0.0, **particles)):
        assert elbo.loss(model, one) == pytest.approx(0.0, abs=1e-7)
    # And the score of the prior's own draws, which the guide never made.
    point = distribution.sample((7,))
    weights = distribution.log_prob(point) - one.log_prob({"site": point})
    torch.testing.assert_close(weights, torch.zeros(7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("guide", OURS)
def test_elbo_and_log_prob_agree_with_plates(guide):
    one = OURS[guide](mixed).setup()
    disturb(one, 0.2)
    pyro.set_rng_seed(4)
    trace = poutine.trace(one).get_trace()
    values = {name: node["value"] for name, node in trace.iter_stochastic_nodes()}
    values = {name: value.detach() for name, value in values.items() if name in one.latent.sites}
    torch.testing.assert_close(trace.log_prob_sum(), one.log_prob(values), rtol=1e-8, atol=1e-8)
    model_trace = poutine.trace(poutine.condition(mixed, data=values)).get_trace()
    pyro.set_rng_seed(4)
    loss = Trace_ELBO().loss(mixed, one)
    expected = (trace.log_prob_sum() - model_trace.log_prob_sum()).detach()
    assert loss == pytest.approx(expected.item())


def test_density_integrates_to_one_over_constrained_values():
    def model():
        pyro.sample("u", dist.Beta(torch.tensor(2.0), 3.0))

    one = AutoFlow(model, "planar*3", init_scale=0.7).setup()
    disturb(one, 0.3)
    grid = torch.linspace(0, 1, 20001)[1:-1]
    with torch.no_grad():
        total = one.log_prob({"u": grid}).exp().sum() / 20000
    assert total == pytest.approx(1.0, abs=1e-3)


def test_scores_follow_the_parameters():
    one = AutoFlow(triple, "iaf*2").setup()
    draws = one.sample_posterior(3)
    before = one.log_prob(draws)
    disturb(one, 0.3)
    assert not torch.allclose(before, one.log_prob(draws))
    fresh = {name: value.clone() for name, value in draws.items()}
    assert torch.equal(one.log_prob(draws), one.log_prob(fresh))


def test_wrong_values_say_what_is_wrong():
    one = AutoFlow(triple).setup()
    good = one.sample_posterior(4)
    with pytest.raises(ShapeError, match="'s' is missing"):
        one.log_prob({"x": good["x"], "u": good["u"]})
    with pytest.raises(ShapeError, match="do not broadcast.*'x': \\(3,\\)"):
        one.log_prob({**good, "x": good["x"][:3]})
    with pytest.raises(OptionError, match="'s' lies outside its support"):
        one.log_prob({**good, "s": -good["s"]})
    wide = OURS["AutoIAF"](mixed).setup()
    values = wide.sample_posterior(2)
    with pytest.raises(ShapeError, match=r"'f' needs a value of shape \(\*b, 2, 3\)"):
        wide.log_prob({**values, "f": values["f"].mT})
    assert one.log_prob(good).isfinite().all()
