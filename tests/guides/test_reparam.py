"""Law: with every reparameteriser of Pyro, each row of a plate has latents of its own.

Inside of a plate a reparameteriser sees a distribution that the plate has not yet broadcast, and
around it one that it has; parameters may be one number or one for each row.
"""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.forecast import Forecaster, ForecastingModel
from pyro.distributions import transforms
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoStructured
from pyro.infer.reparam import (
    AutoReparam,
    ConjugateReparam,
    DiscreteCosineReparam,
    GumbelSoftmaxReparam,
    HaarReparam,
    LatentStableReparam,
    LinearHMMReparam,
    LocScaleReparam,
    MinimalReparam,
    NeuTraReparam,
    ProjectedNormalReparam,
    SplitReparam,
    StableReparam,
    StructuredReparam,
    StudentTReparam,
    SymmetricStableReparam,
    TransformReparam,
)
from pyro.optim import Adam

from pyro_nfvi import NFVI, AutoIAF, load
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import ConversionWarning, ModelError

SIZE = 4


def logits(p):
    return torch.tensor([0.1, 0.5, -0.4]) + p.unsqueeze(-1)


def exp_of(p):
    base = dist.Normal(p, 0.5)
    return dist.TransformedDistribution(base, [transforms.ExpTransform()])


def vector(p):
    return dist.Normal(p.unsqueeze(-1).expand(*p.shape, 4), 1.0).to_event(1)


def hmm(p):
    return dist.LinearHMM(
        dist.StudentT(4.0, 0.0, 1.0).expand([2]).to_event(1),
        torch.eye(2),
        dist.Normal(0.0, 0.3).expand([2]).to_event(1),
        torch.eye(2),
        dist.Normal(p.unsqueeze(-1).unsqueeze(-1).expand(*p.shape, 1, 2), 1.0).to_event(1),
        duration=4,
    )


#: Reparameteriser, distribution of a parameter p, numbers of the value that are latents.
CATALOGUE = {
    "loc scale 0": (lambda: LocScaleReparam(0.0), lambda p: dist.Normal(p, 1.3)),
    "loc scale half": (lambda: LocScaleReparam(0.5), lambda p: dist.StudentT(4.0, p, 1.3)),
    "loc scale learnt": (lambda: LocScaleReparam(), lambda p: dist.Normal(p, 1.3)),
    "loc scale vector": (lambda: LocScaleReparam(0.0), vector),
    "transform": (lambda: TransformReparam(), exp_of),
    "lognormal": (lambda: TransformReparam(), lambda p: dist.LogNormal(p, 0.5)),
    "cosine": (lambda: DiscreteCosineReparam(dim=-1), vector),
    "haar": (lambda: HaarReparam(dim=-1), vector),
    "split": (lambda: SplitReparam([1, 3], -1), vector),
    "projected": (
        lambda: ProjectedNormalReparam(),
        lambda p: dist.ProjectedNormal(p.unsqueeze(-1) * torch.tensor([1.0, 2.0])),
    ),
    "gumbel": (
        lambda: GumbelSoftmaxReparam(),
        lambda p: dist.RelaxedOneHotCategorical(torch.tensor(0.8), logits=logits(p)),
    ),
    "latent stable": (lambda: LatentStableReparam(), lambda p: dist.Stable(1.5, 0.3, 1.0, p)),
    "symmetric stable": (
        lambda: SymmetricStableReparam(),
        lambda p: dist.Stable(torch.tensor(1.5), torch.tensor(0.0), torch.tensor(1.0), p),
    ),
    "stable": (
        lambda: StableReparam(),
        lambda p: dist.Stable(torch.tensor(1.5), torch.tensor(0.3), torch.tensor(1.0), p),
    ),
    "student": (
        lambda: StudentTReparam(),
        lambda p: dist.StudentT(torch.tensor(4.0), p, torch.tensor(1.3)),
    ),
    "minimal": (None, lambda p: dist.Stable(torch.tensor(1.5), torch.tensor(0.3), 1.0, p)),
    "auto": (None, lambda p: dist.Normal(p, 1.3)),
    "auto lognormal": (None, lambda p: dist.LogNormal(p, 0.5)),
}


def config_of(name):
    make, _ = CATALOGUE[name]
    if name.startswith("auto"):
        return AutoReparam()
    if name == "minimal":
        return MinimalReparam()
    return {"x": make()}


def model_of(name, *, inside, full):
    """A site in a plate, reparameterised inside of the plate or around it."""
    config = config_of(name)
    law = CATALOGUE[name][1]

    def body(inner):
        mu = pyro.sample("mu", dist.Normal(0.1, 0.3))
        with pyro.plate("rows", SIZE), inner:
            x = pyro.sample("x", law(mu.expand([SIZE]) if full else mu))
        flat = x.reshape(*x.shape[: x.dim() - (x.dim() > 1)], -1) if x.dim() > 1 else x
        flat = flat.sum(-1) if x.dim() > 1 else flat
        with pyro.plate("data", SIZE):
            pyro.sample("y", dist.Normal(flat, 0.7), obs=torch.linspace(-1.0, 1.0, SIZE))

    if inside and not name.startswith(("auto", "minimal")):
        return lambda: body(poutine.reparam(config=config))
    return poutine.reparam(lambda: body(nullcontext()), config=config)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", CATALOGUE)
def test_rows_have_their_own_latents(name, inside, full):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    model = model_of(name, inside=inside, full=full)
    guide = AutoIAF(model).setup()
    for site in guide.latent.records:
        assert site.shape[:1] == (SIZE,) or site.name.startswith("mu"), site
    log_joint = LogJoint(model, (), {}, guide.latent)
    z = guide.latent.init_loc + 0.2 * torch.randn(3, guide.latent.dim)
    values, ladj = guide.latent.constrain(z)
    found = log_joint.evaluate(z)
    for i in range(3):
        row = {site: value[i] for site, value in values.items()}
        trace = poutine.trace(poutine.condition(model, data=row)).get_trace()
        right = trace.log_prob_sum() + ladj[i]
        torch.testing.assert_close(found.log_p[i], right, rtol=1e-4, atol=1e-4)
        if "x" not in guide.latent.sites:
            torch.testing.assert_close(found.deterministic["x"][i], trace.nodes["x"]["value"])
    x = found.deterministic.get("x", values.get("x"))
    assert x.shape[:2] == (3, SIZE)
    # Rows are not copies of one latent.
    assert (x[:, 1:] != x[:, :1]).any(0).all()
    svi = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step())) for _ in range(2))
    drawn = guide.sample_posterior(2, deterministic=True)
    assert drawn["x"].shape[:2] == (2, SIZE)


def test_a_fit_gives_the_reparameterised_site():
    fit = NFVI(
        model_of("loc scale 0", inside=True, full=False),
        guide="affine",
        max_steps=20,
        seed=0,
        explore="off",
        progress=False,
    ).run()
    assert fit.sample(2)["x_decentered"].shape == (2, SIZE)
    assert fit.log_joint.evaluate(fit.draws.z[:2]).deterministic["x"].shape == (2, SIZE)


@pytest.mark.parametrize("inside", [False, True])
def test_a_reparameteriser_that_draws_outside_of_the_trace_is_refused(inside):
    config = {"x": ConjugateReparam(dist.Beta(torch.tensor(3.0), torch.tensor(2.0)))}

    def model():
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", SIZE):
            with poutine.reparam(config=config) if inside else nullcontext():
                x = pyro.sample("x", dist.Beta(torch.tensor(2.0), torch.tensor(2.0)))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(SIZE))

    model = model if inside else poutine.reparam(model, config=config)
    space = LatentSpace.from_trace(prior_trace(model, (), {}))
    with pytest.raises(ModelError, match="'x' differently.*ConjugateReparam is left out"):
        LogJoint(model, (), {}, space)


def test_a_linear_hmm_is_made_of_latents():
    def model():
        p = pyro.sample("p", dist.Normal(0.0, 1.0))
        with poutine.reparam(config={"y": LinearHMMReparam(init=StudentTReparam())}):
            pyro.sample("y", hmm(p), obs=torch.zeros(4, 2))

    guide = AutoIAF(model).setup()
    assert "y_init_gamma" in guide.latent.sites
    assert torch.isfinite(
        LogJoint(model, (), {}, guide.latent)(torch.zeros(2, guide.latent.dim))
    ).all()


@pytest.mark.filterwarnings("ignore:.*does not commute with initialization")
@pytest.mark.parametrize(
    ("kind", "reparam"),
    [(AutoIAFNormal, NeuTraReparam), (AutoStructured, StructuredReparam)],
)
def test_through_a_trained_guide(kind, reparam):
    """The latents are those of Pyro's own guide."""

    def model():
        with pyro.plate("rows", SIZE):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(SIZE))

    guide = kind(model)
    guide()
    neutra = reparam(guide.requires_grad_(requires_grad=False)).reparam(model)
    space = LatentSpace.from_trace(prior_trace(neutra, (), {}))
    assert space.dim == SIZE
    z = torch.randn(2, SIZE)
    log_joint = LogJoint(neutra, (), {}, space)
    for row, found in zip(z, log_joint(z)):
        held, _ = space.constrain(row)
        trace = poutine.trace(poutine.condition(neutra, data=held)).get_trace()
        torch.testing.assert_close(found, trace.log_prob_sum(), rtol=1e-4, atol=1e-4)


class Drift(ForecastingModel):
    """A random walk with noise; the walk's steps are reparameterised inside of the time plate."""

    def model(self, zero_data, covariates):
        step = pyro.sample("step", dist.LogNormal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
        with self.time_plate, poutine.reparam(config={"drift": LocScaleReparam(0.0)}):
            drift = pyro.sample("drift", dist.Normal(torch.zeros(()), step))
        level = drift.cumsum(-1).unsqueeze(-1)
        self.predict(dist.Normal(0.0, scale.unsqueeze(-1)), level)


@pytest.mark.slow
def test_forecasting_models_take_the_guide():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    steps = 20
    data = torch.cumsum(0.3 * torch.randn(steps), 0).unsqueeze(-1)
    covariates = torch.zeros(steps + 5, 0)
    model = Drift()
    guide = AutoIAF(model)
    forecaster = Forecaster(model, data, covariates[:steps], guide=guide, num_steps=5, log_every=0)
    assert guide.latent.sites["drift_decentered"].shape == (steps,)
    ahead = forecaster(data, covariates, num_samples=7)
    assert ahead.shape == (7, 5, 1)
    assert torch.isfinite(ahead).all()
    assert ahead.std() > 0
    fit = NFVI(model, guide="affine", max_steps=20, seed=0, explore="off", progress=False).run(
        data, covariates[:steps]
    )
    assert fit.sample(3)["drift_decentered"].shape == (3, steps)


def drift_model(y):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("time", len(y)), poutine.reparam(config={"drift": LocScaleReparam(0.0)}):
        drift = pyro.sample("drift", dist.Normal(torch.zeros(len(y)), scale))
    path = pyro.deterministic("path", drift.cumsum(-1), event_dim=1)
    pyro.sample("marked", dist.Delta(path).to_event(1), obs=path)  # early Pyro's idiom
    with pyro.plate("time again", len(y)):
        pyro.sample("y", dist.Normal(path, 0.3), obs=y)


@pytest.mark.slow
def test_a_replaced_site_is_a_latent_for_users(tmp_path):
    y = torch.linspace(-1.0, 1.0, 5)
    runner = NFVI(drift_model, "affine", max_steps=30, max_seconds=3, seed=0, progress=False)
    fit = runner.run(y)
    latents = {"scale", "drift_decentered", "drift"}
    nuts = fit.to_nuts(num_samples=4, warmup_steps=4, num_chains=1, seed=0, progress=False)
    fit.save(tmp_path / "fit")
    loaded = load(tmp_path / "fit", model=drift_model, args=(y,))
    for draws in (fit.sample(7), fit.resample(7), nuts.get_samples(), loaded.sample(7)):
        assert set(draws) == latents
        expected = draws["scale"].unsqueeze(-1) * draws["drift_decentered"]
        torch.testing.assert_close(draws["drift"], expected)
        new = Predictive(drift_model, posterior_samples=draws)(torch.zeros(5))
        torch.testing.assert_close(new["path"].squeeze(), draws["drift"].cumsum(-1))
    assert {*latents, "path", "marked"} <= set(fit.sample(7, deterministic=True))
    assert "drift[0]" in list(fit.summary())
    assert {*latents, "path"} <= set(fit.to_arviz(num_samples=7).posterior.data_vars)
    assert "y" in fit.predict(torch.zeros(5), num_samples=7)

    bare = load(tmp_path / "fit")
    with pytest.warns(ConversionWarning, match="'drift'"):
        assert set(bare.sample(7)) == latents - {"drift"}
    assert set(bare.resample(7)) == latents


@pytest.mark.filterwarnings("ignore:At pyro.sample")
@pytest.mark.parametrize("name", CATALOGUE)
def test_replaced_sites_are_told_from_deterministic_ones(name):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    model = model_of(name, inside=False, full=True)
    space = LatentSpace.from_trace(prior_trace(model, (), {}))
    replaced = LogJoint(model, (), {}, space).replaced
    assert ("x" in replaced) == ("x" not in space.sites)
