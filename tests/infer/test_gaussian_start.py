"""The Gaussian stage of a fit: where it starts, what it leaves alone, and what it is worth."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, evidence, posterior

from pyro_nfvi import NFVI, AutoFlow, load
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import ModelWarning, OptionError
from pyro_nfvi.flows import LowRankAffine, make_flow
from pyro_nfvi.flows._block_arrow import ArrowFactor, BlockArrow
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.infer._stages.gaussian_start import gaussian_stage

QUICK = {"seed": 0, "progress": False, "stop": False, "explore": "off"}


def quick(model=conjugate, **options):
    return NFVI(model, **(QUICK | options))


def regression(x, y):
    """Strongly correlated coefficients, in units a thousand times apart."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1000.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def hard_data():
    gen = torch.Generator().manual_seed(0)
    first = 50 + torch.randn(200, generator=gen)
    x = torch.stack([first, 1e-3 * (first + 0.05 * torch.randn(200, generator=gen))], -1)
    return x, x @ torch.tensor([0.3, 100.0]) + torch.randn(200, generator=gen)


@pytest.mark.parametrize(
    "guide",
    [
        "affine",
        "iaf*2",
        make_flow("planar*2", 1),
        lambda model: AutoFlow(model, None),
        AutoFlow(conjugate, None, outer="full"),
    ],
    ids=["affine", "iaf", "flow", "callable", "full"],
)
def test_every_guide_that_is_new_starts_at_the_gaussian(guide):
    fit = quick(guide=guide, max_steps=20, precondition=True).run(Y)
    mean, sd = posterior(Y)
    # 20 steps at the warm-up's rates move it little; a short stage finds a conjugate posterior
    # to a per cent or two.
    assert abs(fit.summary()["mu"].mean - mean) < 0.1
    assert abs(fit.summary()["mu"].sd / sd - 1) < 0.2
    assert fit.elbo > evidence(Y) - 0.05
    assert "best Gaussian" in fit.report


def test_correlations_and_units_are_found_before_the_flow_trains():
    x, y = hard_data()
    assert quick(regression, guide="affine", max_steps=300).run(x, y).ess > 1500
    without = quick(regression, guide="affine", max_steps=300, precondition=False).run(x, y)
    assert not without.ess > 200


def test_diagonal_outer_maps_take_the_scales_given_the_others():
    x, y = hard_data()
    guide = AutoFlow(regression, None)
    quick(regression, guide=guide, max_steps=1000, optim=1e-6, stop=True).run(x, y)
    expected = (x.T @ x + 1e-6 * torch.eye(2)).diagonal().rsqrt()
    torch.testing.assert_close(guide.scale.detach(), expected, rtol=0.15, atol=0)


def test_trained_guides_and_outer_flows_stay_where_they_are():
    trained = AutoFlow(conjugate, None)
    trained.setup(Y)
    with torch.no_grad():
        trained.loc.fill_(3.0)
    fit = quick(guide=trained, max_steps=1).run(Y)
    assert abs(float(trained.loc.detach()) - 3.0) < 0.01
    assert "best Gaussian" not in fit.report
    own = AutoFlow(conjugate, None, outer=make_flow("affine", 1))
    assert "best Gaussian" not in quick(guide=own, max_steps=1).run(Y).report


def test_saved_fits_keep_the_whitening(tmp_path):
    fit = quick(max_steps=30).run(Y)
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt")
    values = {"mu": torch.tensor([1.0, 2.0])}
    assert torch.equal(again.log_prob(values), fit.log_prob(values))


@pytest.mark.slow
def test_above_a_stated_dimension_it_is_diagonal():
    size = GUIDES.full_dim + 1

    def wide():
        pyro.sample("z", dist.Normal(torch.full((size,), 7.0), 0.01).to_event(1))

    with pytest.warns(UserWarning, match="data"):
        fit = quick(wide, guide="affine", max_steps=300).run()
    fixed = fit.guide.outer.flows[1]
    assert isinstance(fixed, LowRankAffine)
    assert not fixed.stretch.any()
    assert abs(fit.elbo) < 0.05 * size**0.5


def test_starts_that_cannot_be_evaluated_are_drawn_again():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        wall = torch.where(mu > 8.0, torch.tensor(torch.nan), torch.tensor(0.0))
        pyro.factor("wall", wall)
        pyro.sample("y", dist.Normal(mu, 2.0).expand([len(y)]).to_event(1), obs=y)

    guide = AutoFlow(model, None, init_loc_fn=pyro.infer.autoguide.init_to_mean).setup(Y)
    log_joint = LogJoint(model, (Y,), {}, guide.latent)
    gen = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    found = gaussian_stage(log_joint, guide.latent.init_loc, effort=1.0, generator=gen)
    assert (found.start_bounds > -torch.inf).all()
    assert (found.starts.loc < 8.0).all()


def test_no_gaussian_is_said():
    def flat():
        # A prior that cannot be drawn from: nothing tells how large numbers are.
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("wide", -0.5 * (a / 1e9) ** 2)
        pyro.sample("o", dist.Normal(torch.tensor(0.0), 1.0), obs=torch.tensor(0.0))

    with pytest.warns(ModelWarning):
        fit = quick(flat, guide="affine", max_steps=1000, optim=1e-3).run()
    assert "no Gaussian to start from" in fit.report
    assert "diverged along a" in fit.report


def test_the_top_of_a_funnel_is_no_place_to_start():
    # Its density has no maximum: an ascent ends at a point of no width.
    def funnel(y):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.5))
        with pyro.plate("groups", 8):
            pyro.sample("x", dist.Normal(torch.tensor(0.0), scale))
        pyro.sample("y", dist.Normal(scale, 5.0), obs=y)

    fit = quick(funnel, guide="affine", max_steps=600).run(torch.tensor(1.0))
    # Log evidence about -2.8; the best Gaussian is 1.5 nats below; at the top it is 50 below.
    assert fit.elbo > -6.0


@pytest.mark.slow
def test_subsampled_models_and_same_seeds():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        with pyro.plate("data", len(y), subsample_size=20) as index:
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y[index])

    y = torch.linspace(-2.0, 4.0, 100)
    fits = [quick(model, guide="affine", max_steps=150).run(y) for _ in range(2)]
    assert torch.equal(fits[0].losses, fits[1].losses)
    mean, sd = posterior(y)
    assert abs(fits[0].summary()["mu"].mean - mean) < sd


def test_a_mode_of_more_mass_that_no_start_saw_is_taken():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        near = -50 * (z - 0.5).square().sum(-1)
        far = 30 - 50 * (z - 2.5).square().sum(-1)
        pyro.factor("two", torch.logaddexp(near, far))

    fit = NFVI(model, seed=0, progress=False).run()
    # Exactly 250 / 101; the other mode has e^-18 of the mass.
    torch.testing.assert_close(
        fit.sample(2000)["z"].mean(0), torch.full((4,), 2.475), atol=0.02, rtol=0
    )
    assert fit.verdict == "good"


@pytest.mark.slow
def test_single_precision_holds_at_a_large_condition_number():
    """A polynomial far from its origin: a condition number of 1e9, in float32."""
    x = torch.linspace(5.0, 6.0, 2000)
    design = torch.stack([x**k for k in range(4)], -1)
    y = x - 0.5 * x.square() + 0.1 * torch.randn(2000, generator=torch.Generator().manual_seed(0))

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 10.0).to_event(1))
        pyro.sample("y", dist.Normal(beta @ design.T, 0.1).to_event(1), obs=y)

    double = design.double()
    cov = torch.linalg.inv(double.T @ double / 0.01 + torch.eye(4).double() / 100)
    mean = cov @ double.T @ y.double() / 0.01
    fit = NFVI(model, seed=0, progress=False).run()
    draws = fit.sample(4000)["beta"].double()
    sds = cov.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sds).abs().max()) < 0.1
    assert float((draws.std(0) / sds - 1).abs().max()) < 0.1
    assert fit.verdict == "good"
    assert "run the model in float64" in fit.report


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-9, 1e12])
def test_numbers_may_come_in_billions(unit):
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, unit))
        b = pyro.sample("b", dist.Normal(0.0, 1 / unit))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a / unit + b * x, 0.1), obs=y)

    x = torch.linspace(1.0, 5.0, 30)
    design = torch.stack([torch.ones(30), x], 1).double()
    y = design.float() @ torch.tensor([1.0, 0.5])
    cov = (torch.eye(2).double() + design.T @ design / 0.01).inverse()
    mean = cov @ design.T @ y.double() / 0.01
    fit = NFVI(model, seed=0, progress=False).run(x * unit, y)
    assert fit.verdict == "good"
    draws, size = fit.sample(4000, seed=1), (unit, 1 / unit)
    for i, name in enumerate("ab"):
        z = (draws[name].double() / size[i] - mean[i]) / cov[i, i].sqrt()
        # Of 4000 draws: 5 standard errors of the mean, 5 of the sd.
        assert abs(z.mean()) < 0.08
        assert abs(z.std() - 1) < 0.056


def groups_around_a_mean(y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(2.0)))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 0.3), obs=y)


def many_groups(count=300):
    gen = torch.Generator().manual_seed(4)
    y = 1 + 0.76 * torch.randn(count, generator=gen)
    return y, AutoFlow(groups_around_a_mean, None, outer="whitened").setup(y)


def test_many_rows_of_a_plate_have_a_block_arrow():
    y, guide = many_groups()
    log_joint = LogJoint(groups_around_a_mean, (y,), {}, guide.latent)
    gen = torch.Generator().manual_seed(0)
    found = gaussian_stage(log_joint, guide.latent.init_loc, effort=1.0, generator=gen)
    assert found.num_rows < 12_000
    guide.start_at_arrow(found.loc, found.arrow)
    z, log_q = guide.density().push(torch.randn(2000, 302, generator=gen))
    log_w = (log_joint(z) - log_q).detach()
    # The gap is that of a scale that is not normal: a few hundredths of a nat for 302 latents.
    assert abs(float(log_w.mean()) - found.bound) < 5 * found.bound_se + 0.05
    assert float(log_w.var()) < 0.4
    again = many_groups()[1]
    again.load_state_dict(guide.state_dict())
    torch.testing.assert_close(again.density().log_prob(z), guide.density().log_prob(z))
    clone = copy.deepcopy(guide)
    assert torch.equal(clone.density().log_prob(z), guide.density().log_prob(z))


def test_an_arrow_is_for_many_latents_and_whitened_maps():
    y, guide = many_groups()
    factor = ArrowFactor.diagonal(
        BlockArrow.of(torch.arange(2), torch.arange(2, 302)[:, None]), torch.ones(302)
    )
    guide.start_at_arrow(torch.zeros(302), factor)
    pyro.clear_param_store()
    plain = AutoFlow(groups_around_a_mean, None).setup(y)
    with pytest.raises(OptionError, match="whitened"):
        plain.start_at_arrow(torch.zeros(302), factor)


@pytest.mark.slow
def test_a_thousand_groups_are_right_after_the_gaussian(tmp_path):
    y, _ = many_groups(1000)
    fit = quick(groups_around_a_mean, guide="gaussian", max_steps=1000).run(y)
    # Mean and sd of log tau by its marginal, the mean and all groups integrated out.
    grid = torch.linspace(-1, 0.5, 1501, dtype=torch.float64)
    variance = 0.09 + (2 * grid).exp()
    precision, total = len(y) / variance + 1 / 25, y.double().sum()
    log_p = (
        -0.5 * len(y) * variance.log() - 0.5 * y.double().square().sum() / variance
        + 0.5 * (total / variance).square() / precision - 0.5 * precision.log()
        + dist.HalfNormal(2.0).log_prob(grid.exp()) + grid
    )  # fmt: skip
    weight = (log_p - log_p.logsumexp(0)).exp()
    centre = (weight * grid).sum()
    sd = (weight * (grid - centre).square()).sum().sqrt()
    drawn = fit.sample(4000, seed=0)["tau"].double().log()
    assert abs(float(drawn.mean() - centre)) < 0.15 * float(sd)
    assert abs(float(drawn.std() / sd) - 1) < 0.1
    fit.save(tmp_path / "fit.pt")
    values = fit.sample(3, seed=1)
    assert torch.equal(load(tmp_path / "fit.pt").log_prob(values), fit.log_prob(values))
