"""Local latents relative to their prior: moments, the map's laws, and what it learns."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import disturb
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._pyro_model.constraints import bijection, support_of
from pyro_nfvi._pyro_model.prior_moments import prior_moments
from pyro_nfvi.errors import ModelWarning


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()


T = torch.tensor
#: Distribution -> location and scale of the unconstrained coordinate; None from draws.
FAMILIES = {
    "normal": (lambda: dist.Normal(T([1.0, -2.0]), T([0.5, 3.0])), ([1.0, -2.0], [0.5, 3.0])),
    "student": (lambda: dist.StudentT(3.0, T([1.0]), T([2.0])), ([1.0], [2.0])),
    "cauchy": (lambda: dist.Cauchy(T([1.0]), T([2.0])), ([1.0], [2.0])),
    "laplace": (lambda: dist.Laplace(T([1.0]), T([2.0])), ([1.0], [2.0])),
    "log-normal": (lambda: dist.LogNormal(T([0.5]), T([2.0])), ([0.5], [2.0])),
    "events": (lambda: dist.Normal(T([1.0, -2.0]), 3.0).to_event(1), ([1.0, -2.0], [3.0, 3.0])),
    "multivariate": (
        lambda: dist.MultivariateNormal(T([1.0, 2.0]), T([[4.0, 1.0], [1.0, 9.0]])),
        ([1.0, 2.0], [2.0, 3.0]),
    ),
    "gamma": (lambda: dist.Gamma(T([50.0]), T([10.0])), None),
    "inverse gamma": (lambda: dist.InverseGamma(T([50.0]), T([10.0])), None),
    "beta": (lambda: dist.Beta(T([60.0]), T([30.0])), None),
    "uniform": (lambda: dist.Uniform(T([2.0]), T([2.001])), "wide"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_moments_are_those_of_the_unconstrained_prior(name):
    make, expected = FAMILIES[name]
    fn = make()
    loc, log_scale = prior_moments(fn, support_of(fn))
    assert loc.shape == log_scale.shape == fn.batch_shape + fn.event_shape
    if isinstance(expected, tuple):
        torch.testing.assert_close(loc, T(expected[0]))
        torch.testing.assert_close(log_scale.exp(), T(expected[1]))
        return
    pyro.set_rng_seed(0)
    u = bijection(support_of(fn)).inv(fn.sample((4000,)))
    if expected is None:
        # The delta method is right to the order of the coefficient of variation, 0.14 at most.
        torch.testing.assert_close(loc, u.mean(0), rtol=0.05, atol=0.05)
        torch.testing.assert_close(log_scale.exp(), u.std(0), rtol=0.15, atol=0.0)
    else:
        assert log_scale.isfinite().all()


def test_without_moments_nothing_is_known_or_zero():
    assert (
        prior_moments(dist.Dirichlet(torch.ones(3)), dist.Dirichlet(torch.ones(3)).support) is None
    )
    heavy = dist.HalfCauchy(T([1.0]))
    loc, log_scale = prior_moments(heavy, support_of(heavy))
    assert (loc.tolist(), log_scale.tolist()) == ([0.0], [0.0])
    scale = T([0.0, 2.0]).requires_grad_()
    loc, log_scale = prior_moments(
        dist.Normal(0.0, scale, validate_args=False), dist.Normal.support
    )
    assert log_scale[0] == 0.0
    assert loc.isfinite().all()


def chain(y, size=None):
    """Two sites a row, of which the second depends on the first; a site that depends on none."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 3.0))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(()), 0.5))
    with pyro.plate("rows", len(y), subsample_size=size) as rows:
        pyro.sample("alone", dist.Normal(torch.zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(mean, sd))
        s = pyro.sample("s", dist.Gamma(2.0 + z.square(), 1.0))
        pyro.sample("y", dist.Normal(z, s), obs=y[rows])


Y = torch.linspace(-1.0, 2.0, 7)


@pytest.mark.parametrize("size", [None, 3])
def test_the_guide_keeps_its_laws_far_from_the_centred_form(size):
    pyro.set_rng_seed(1)
    guide = AutoPlateFlow(chain, local="affine", model_informed=True).setup(Y, size)
    assert guide._prior.sites == ("z", "s")
    assert guide._prior.vectorised
    disturb(guide, 0.2)
    with torch.no_grad():
        guide.tables.degrees.copy_(torch.tensor([0.9, -0.4]))
    for rows in (None, {"rows": torch.tensor([5, 0, 2])}):
        density = guide.density(rows)
        eps = density.sample_base(3)
        z, log_q, score = density.push_with_score(eps)
        torch.testing.assert_close(density.push(eps), (z, log_q))
        point = z.detach().requires_grad_()
        again = density.log_prob(point)
        torch.testing.assert_close(again, log_q)
        (expected,) = torch.autograd.grad(again.sum(), point)
        torch.testing.assert_close(score, expected)
    # Rows of a draw have the same density, whatever else is drawn.
    values = guide.sample_posterior(4)
    some = {n: v[..., [5, 0, 2]] if v.dim() > 1 else v for n, v in values.items()}
    one, other = guide.log_prob(values), guide.log_prob(some, rows={"rows": [5, 0, 2]})
    left = {n: v[..., [1, 3, 4, 6]] if v.dim() > 1 else v for n, v in values.items()}
    third = guide.log_prob(left, rows={"rows": [1, 3, 4, 6]})
    names = {"mean": values["mean"], "sd": values["sd"]}
    # Globals count in both parts: log q of all = both parts less that of the globals.
    globals_alone = other + third - one
    fewer = guide.log_prob({**names, **{n: v[..., [0]] for n, v in values.items() if v.dim() > 1}},
                           rows={"rows": [0]})  # fmt: skip
    rest = {n: v[..., 1:] if v.dim() > 1 else v for n, v in values.items()}
    again = fewer + guide.log_prob(rest, rows={"rows": [1, 2, 3, 4, 5, 6]}) - one
    torch.testing.assert_close(globals_alone, again)


def test_the_trace_of_the_guide_has_its_density():
    guide = AutoPlateFlow(chain, local="affine", model_informed=True).setup(Y, 3)
    disturb(guide, 0.2)
    with torch.no_grad():
        guide.tables.degrees.copy_(torch.tensor([0.9, 0.4]))
    trace = poutine.trace(guide).get_trace(Y, 3)
    rows = {"rows": trace.nodes["rows"]["value"]}
    layout = guide.layout.at(rows)
    z = layout.space.pack({name: trace.nodes[name]["value"] for name in guide.latent.sites})
    _, ladj = layout.space.constrain(z, weighted=True)
    torch.testing.assert_close(trace.log_prob_sum(), guide.density(rows).log_prob(z) - ladj)


def test_a_site_that_depends_on_a_hidden_draw_is_left_as_it_is():
    hidden = poutine.block(chain, hide=["sd"])
    with pytest.warns(ModelWarning, match="model_informed=True has no effect"):
        assert AutoPlateFlow(hidden, model_informed=True).setup(Y)._prior is None
    pyro.clear_param_store()
    assert AutoPlateFlow(chain).setup(Y)._prior is None


@pytest.mark.slow
def test_a_centred_funnel_costs_nothing():
    def model(size=20):
        tau = pyro.sample("tau", dist.Normal(torch.zeros(()), 1.5))
        with pyro.plate("rows", size):
            pyro.sample("z", dist.Normal(torch.zeros(()), tau.exp()))

    losses = []
    for informed in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoPlateFlow(model, flow=None, local=None, model_informed=informed)
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        for _ in range(300):
            svi.step()
        losses.append(sum(svi.evaluate_loss() for _ in range(40)) / 40)
    # The posterior is the prior: the best bound is 0, which normal rows alone miss by far.
    assert losses[0] > 2.0
    assert losses[1] < 0.6


def test_it_starts_at_the_initial_point_with_the_initial_scale():
    guide = AutoPlateFlow(chain, model_informed=True, flow=None, local=None).setup(Y, 3)
    density = guide.density()
    z, _ = density.push(torch.zeros(1, guide.latent.dim))
    torch.testing.assert_close(z[0], guide.latent.init_loc)
    for name in ("alone", "z", "s"):
        site = guide.latent.sites[name]
        eps = torch.zeros(1, guide.latent.dim)
        eps[0, site.start] = 0.01
        moved = density.push(eps)[0][0, site.start] - guide.latent.init_loc[site.start]
        torch.testing.assert_close(moved, torch.tensor(0.001))
