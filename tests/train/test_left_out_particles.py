"""Models whose gradient is not finite though their density is: limits, and what has none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import on
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._train.left_out_particles import LeftOut
from pyro_nfvi.errors import DivergedError, ModelError
from pyro_nfvi.infer._findings import Level, find, from_json, to_json


def hill_data():
    torch.manual_seed(26)
    dose = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]).repeat(2)
    return dose, 10 * dose**0.9 / (dose**0.9 + 2.0**0.9) + 0.5 * torch.randn(20)


def hill(dose, y):
    """Dose and response; (dose / ec50) ** h has a NaN gradient at dose 0 for every h < 1."""
    top = pyro.sample("top", dist.Normal(10.0, 5.0))
    ec50 = pyro.sample("ec50", dist.LogNormal(0.0, 1.5))
    h = pyro.sample("h", dist.LogNormal(0.0, 0.5))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    r = (dose / ec50) ** h
    with pyro.plate("rows", len(dose)):
        pyro.sample("y", dist.Normal(top * r / (1 + r), s), obs=y)


@pytest.mark.parametrize(
    "engine", [pytest.param("auto", marks=pytest.mark.slow),
               pytest.param("graph", marks=pytest.mark.slow),
               pytest.param("hybrid", marks=pytest.mark.slow),
               pytest.param("eager", marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_zero_dose_leaves_the_posterior_as_it_is(engine):
    # The moments are those of dose ** h / ec50 ** h, of which no gradient is NaN. Of 4000 draws
    # the means are within 5 standard errors: false alarms below 1e-6.
    with torch.random.fork_rng():
        dose, y = hill_data()
        fit = on(NFVI(hill, seed=0, progress=False), engine).run(dose, y)
        draws = fit.sample(4000, seed=1)
    assert abs(float(draws["h"].mean()) - 0.817) < 5 * 0.12 / 4000**0.5 + 0.01
    assert abs(float(draws["h"].std()) - 0.123) < 0.015
    assert abs(float(draws["ec50"].mean()) - 2.21) < 0.1
    assert fit.verdict == "good"
    assert find(fit.training.findings, LeftOut) is None


@pytest.mark.slow
def test_a_zero_dose_leaves_a_short_fit_as_it_is():
    # Reweighted draws of a Gaussian, whose effective number is at least 500: five standard errors.
    with torch.random.fork_rng():
        dose, y = hill_data()
        fit = NFVI(hill, "affine", seed=0, max_steps=60, explore="off", progress=False).run(dose, y)
    h = fit.resample(4000, seed=1)["h"]
    assert fit.ess > 500
    assert abs(float(h.mean()) - 0.817) < 5 * 0.12 / 500**0.5
    assert abs(float(h.std()) - 0.123) < 0.02
    assert find(fit.training.findings, LeftOut) is None
    assert fit.draws.num_bad == 0


def test_a_loop_of_the_users_own_gets_site_and_cause():
    with torch.random.fork_rng():
        dose, y = hill_data()
        guide = AutoFlow(hill, "affine")
        svi = SVI(hill, guide, Adam({"lr": 0.01}), Trace_ELBO(8))
        with pytest.raises(ModelError, match=r"site 'y'.* 'ec50' is not finite: pow at 0.*NFVI"):
            [svi.step(dose, y) for _ in range(20)]
    assert all(bool(torch.isfinite(p).all()) for p in guide.parameters())


def corner(share):
    """A posterior of which a share, where x is below a quantile, has no gradient at all."""
    below = float(dist.Normal(0.0, 1.0).icdf(torch.tensor(share)))

    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        rest = torch.where(x < below, x - x, torch.ones_like(x))
        pyro.factor("edge", rest.sqrt() - (2 * rest).sqrt())

    return model


def trained(share, **options):
    chosen = {"guide": "affine", "seed": 0, "progress": False, "max_steps": 300} | options
    engine = chosen.pop("engine", "auto")
    return on(NFVI(corner(share), precondition=False, **chosen), engine).run()


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_share_without_a_limit_excludes_good(engine):
    fit = trained(0.04, engine=engine)
    found = find(fit.training.findings, LeftOut)
    assert 0.01 < found.share <= 0.1
    assert found.level is Level.DOUBT
    assert found.site == "edge"
    assert "sqrt at 0" in found.why
    assert fit.verdict != "good"
    assert any("'edge'" in reason for reason in fit.verdict.reasons)


def test_stuck_is_a_state_of_its_own_and_leads_the_verdict():
    fit = trained(0.3, engine="eager")
    assert fit.why_stopped == "not_finite"
    assert "'edge'" in fit.why_stopped.detail
    assert fit.verdict == "do not trust"
    assert "'edge'" in fit.verdict.reasons[0]
    assert "sqrt at 0" in fit.verdict.reasons[0]


def test_a_fit_that_gives_up_is_stuck_too():
    with pytest.raises(DivergedError, match=r"site 'edge'.*'x'.*sqrt at 0") as caught:
        trained(0.85, engine="eager", max_steps=2000)
    if caught.value.fit is not None:
        assert caught.value.fit.why_stopped == "not_finite"


def test_the_finding_is_saved():
    found = LeftOut(0.3, "y", "the gradient ...")
    assert from_json(to_json([found])) == (found,)
    assert LeftOut(0.001).level is Level.REMARK
    assert LeftOut(0.001).sentence() == ""
