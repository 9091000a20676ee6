"""Amortised inference: right over many data sets, calibrated, repeatable, and what it refuses."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal

import pyro_nfvi as nfvi
from pyro_nfvi.errors import DataError, DataWarning, ModelError, OptionError, ShapeError
from pyro_nfvi.infer._amortised_findings import NoDensity, UnusualData
from pyro_nfvi.infer._findings import find

ROWS, PRIOR = 5, 2.0
QUICK = {"flow": "tril", "progress": False, "training": {"max_steps": 1600}}


FEW = {"num_simulations": 300, "seed": 0, "progress": False, "training": {"max_steps": 60}}


def conjugate(y=None):
    """Two means with a Gaussian prior, and rows of unit noise."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), PRIOR).to_event(1))
    with pyro.plate("data", ROWS):
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def implicit():
    """The same as a simulator without a density: noise is drawn, and data are a function of it."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), PRIOR).to_event(1))
    noise = pyro.sample("noise", dist.Normal(torch.zeros(ROWS, 2), 1.0).to_event(2))
    pyro.deterministic("y", mu.unsqueeze(-2) + noise, event_dim=2)


def exact(y):
    """The posterior of both: means and sd."""
    precision = ROWS + 1 / PRIOR**2
    return Normal(y.sum(-2) / precision, 1 / math.sqrt(precision))


def data_sets(count, seed=7):
    generator = torch.Generator().manual_seed(seed)
    mu = PRIOR * torch.randn(count, 1, 2, generator=generator)
    return mu + torch.randn(count, ROWS, 2, generator=generator)


def divergence(posterior, y):
    """Mean over data sets of KL(exact | q), by draws."""
    generator = torch.Generator().manual_seed(3)
    right = exact(y)
    mu = right.mean + right.scale * torch.randn(200, *right.mean.shape, generator=generator)
    x = posterior.scaling(y.flatten(1))
    log_q = posterior.density.log_prob(mu, x)
    return float((right.log_prob(mu).sum(-1) - log_q).mean())


@pytest.fixture(scope="module")
def posterior():
    return nfvi.amortise(conjugate, observed="y", num_simulations=4000, seed=0, **QUICK)


@pytest.fixture(scope="module")
def without_density(posterior):
    # Its training is that of the conjugate model, to the last bits.
    made = nfvi.amortise(implicit, observed="y", sites="mu", flow="tril", **FEW)
    return nfvi.amortised.AmortisedPosterior(
        made.simulations, posterior.density, posterior.scaling, posterior.references,
        posterior.held_out, posterior.record,
    )  # fmt: skip


def test_posteriors_are_exact_over_many_data_sets(posterior):
    # 0.05 nats are 0.22 sd of a single mean over two latents; 0.036 are reached.
    assert 0 <= divergence(posterior, data_sets(300)) < 0.05


def test_a_simulator_without_density_has_the_same_posteriors():
    # The same noise makes the same data, so the same density is learnt.
    one, other = (
        nfvi.amortise(model, observed="y", sites="mu", flow="tril", **FEW)
        for model in (conjugate, implicit)
    )
    y = data_sets(1)[0]
    assert torch.allclose(one(y).draws.z, other(y).draws.z, atol=1e-4)
    assert other.simulations.functions == ("y",)


def test_weights_judge_a_posterior_where_the_model_has_a_density(posterior):
    y = data_sets(1)[0]
    fit = posterior(y)
    right = exact(y)
    log_evidence, _ = fit.log_evidence()
    # Bayes' theorem at the posterior mean.
    mu = right.mean
    joint = Normal(0.0, PRIOR).log_prob(mu).sum() + Normal(mu, 1.0).log_prob(y).sum()
    assert log_evidence == pytest.approx(float(joint - right.log_prob(mu).sum()), abs=0.02)
    assert fit.verdict in ("good", "usable with reweighting")
    assert fit.tail.reliable
    assert fit.ess > 1000
    quantiles = fit.quantiles((0.5,))["mu"][0]
    assert torch.allclose(quantiles.float(), right.mean, atol=0.25)
    assert torch.allclose(fit.log_prob({"mu": mu}), right.log_prob(mu).sum(), atol=0.5)
    reweighted = fit.summary(reweighted=True)
    assert abs(reweighted["mu[0]"].mean - float(right.mean[0])) < 0.05


def test_refining_ends_at_the_exact_posterior(posterior):
    y = data_sets(1)[0]
    fit = posterior.refine(y, max_steps=200, progress=False, explore="off")
    assert fit.verdict == "good"
    assert torch.allclose(fit.sample(4000, seed=0)["mu"].mean(0), exact(y).mean, atol=0.05)
    # The amortised posterior itself is as it was.
    assert posterior(y).elbo < fit.elbo + 0.01


def test_what_has_no_density_is_judged_by_simulations(without_density):
    y = data_sets(1)[0]
    assert without_density(y).verdict == "not known"
    fit = without_density(y, calibration=without_density.calibration(2000, seed=1))
    assert math.isnan(fit.khat)
    assert "function of others" in find(fit.findings, NoDensity).why
    assert fit.verdict == "good", fit.verdict.reasons
    far = without_density(data_sets(1)[0] + 40)
    assert find(far.findings, UnusualData).unusual
    assert far.verdict == "do not trust"
    assert "outside of what was simulated" in far.verdict.reasons[0]
    with pytest.raises(ModelError, match="no ELBO to refine by: the observed site 'y'"):
        without_density.refine(data_sets(1)[0])


def test_data_of_the_model_are_seldom_called_unusual(posterior):
    # 200 data sets, false alarms with probability 0.01 each: more than 8 come once in 1000 tests.
    x = posterior.scaling(data_sets(200, seed=11).flatten(1))
    home = posterior.references.neighbourhoods[0]
    assert sum(home.p_value(row) < 0.01 for row in x) <= 8


def test_calibration_tells_right_from_broken(posterior):
    fine = posterior.calibration(2000, seed=1)
    assert fine.verdict in ("calibrated", "nearly calibrated"), fine.verdict.reasons
    assert fine.coverage(0.9) == pytest.approx(0.9, abs=0.04)
    assert set(fine.summary()) == {"mu[0]", "mu[1]"}

    def louder(y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), PRIOR).to_event(1))
        with pyro.plate("data", ROWS):
            pyro.sample("y", dist.Normal(mu, 2.0).to_event(1), obs=y)

    other = nfvi.amortise(louder, observed="y", flow="tril", **FEW)
    broken = nfvi.amortised.AmortisedPosterior(
        other.simulations, posterior.density, posterior.scaling, posterior.references,
        posterior.held_out, posterior.record,
    ).calibration(2000, seed=1)  # fmt: skip
    assert broken.verdict == "not calibrated"
    assert all("too narrow" in row.word for row in broken.rows)


def test_one_seed_gives_one_posterior_and_no_other_state_moves():
    options = {**QUICK, "training": {"max_steps": 100}}
    before = torch.get_rng_state()
    one, two = (
        nfvi.amortise(conjugate, observed="y", num_simulations=300, seed=5, **options)
        for _ in range(2)
    )
    y = data_sets(1)[0]
    assert torch.equal(one(y).draws.z, two(y).draws.z)
    assert torch.equal(one(y).sample(10, seed=1)["mu"], two(y).sample(10, seed=1)["mu"])
    assert torch.equal(one.calibration(50, seed=2).region, two.calibration(50, seed=2).region)
    assert torch.equal(torch.get_rng_state(), before)
    assert not pyro.get_param_store().keys()


# -------------------------------------------------------------------------- models of all kinds


def test_discrete_latents_are_summed_out_by_being_drawn():
    def model(y=None):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)

    made = nfvi.amortise(model, observed="y", flow="affine", **FEW)
    assert list(made.latent.sites) == ["mu"]
    assert made.simulations.summed_out == ("k",)
    assert "summed out by being drawn: k" in made.report
    assert math.isnan(made(1.0).khat)
    with pytest.raises(OptionError, match="'k', which is discrete"):
        nfvi.amortise(model, observed="y", sites="k", **FEW)


def own_noise():
    theta = pyro.sample("theta", dist.Uniform(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("y", theta + torch.randn(2), event_dim=1)


def branching():
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    pyro.deterministic("y", theta if theta.item() > 0.5 else -theta)


@pytest.mark.parametrize("model", [own_noise, branching])
def test_what_cannot_be_run_together_is_run_one_by_one(model):
    # Noise that is no site would be shared by all draws of a plate.
    made = nfvi.amortise(model, observed="y", flow="affine", **FEW)
    assert made.simulations.how == "loop"
    assert "one by one" in made.report
    drawn = made.simulations.run(300, 1)
    if model is own_noise:
        noise = drawn.x - made.latent.constrain(drawn.z)[0]["theta"]
        assert abs(float(noise.std()) - 1) < 0.15
        assert len(noise[:, 0].unique()) > 250


def test_a_sum_over_scalars_runs_by_vmap():
    def model():
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        slope = pyro.sample("slope", dist.Normal(1.0, 1.0))
        pyro.deterministic("y", torch.stack([theta, slope * theta]), event_dim=1)

    made = nfvi.amortise(model, observed="y", flow="affine", **FEW)
    assert made.simulations.how == "vmap"


# -------------------------------------------------------------------------------- summaries


def series(y=None):
    rho = pyro.sample("rho", dist.Uniform(0.0, 0.95))
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
    steps, now = [], torch.zeros(rho.shape)
    for t in range(20):
        now = rho * now + noise[..., t]
        steps.append(now)
    pyro.deterministic("y", torch.stack(steps, -1), event_dim=1)


def test_a_set_has_no_order():
    made = nfvi.amortise(conjugate, observed="y", flow="affine", summary="set", **FEW)
    y = data_sets(1)[0]
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(made(y).draws.log_q, made(y[order]).draws.log_q, atol=1e-4)
    assert len(made.references.neighbourhoods) == 2


@pytest.mark.parametrize("summary", ["series", "own"])
def test_series_are_summarised(summary):
    net = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    chosen = net if summary == "own" else summary
    made = nfvi.amortise(series, observed="y", sites="rho", flow="affine", summary=chosen, **FEW)
    assert made(torch.randn(20)).sample(3)["rho"].shape == (3,)
    assert made.record.summary == ("Sequential" if summary == "own" else "series")


# -------------------------------------------------------------------------------- bad input


def test_other_data_than_were_simulated_are_refused(posterior):
    y = data_sets(1)[0]
    with pytest.raises(ShapeError, match=r"'y' have shape \(4, 2\), and those .*\(5, 2\)"):
        posterior(y[:4])
    with pytest.raises(DataError, match="1 of 10 numbers of 'y' are NaN"):
        posterior(y.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(math.nan)))
    with pytest.raises(OptionError, match="'yy', which was not simulated. Did you mean y"):
        posterior({"yy": y})
    assert torch.equal(posterior(y.tolist()).draws.z, posterior({"y": y}).draws.z)


def improper(y=None):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def factored(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("more", -mu)
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def overflowing(share):
    def model(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        bad = pyro.sample("bad", dist.Bernoulli(share))
        noisy = pyro.sample("noise", dist.Normal(mu, 1.0))
        pyro.deterministic("y", torch.where(bad > 0, torch.nan, noisy))

    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (conjugate, {"observed": "yy"}, OptionError, "Did you mean y"),
        (conjugate, {"observed": "y", "sites": "mus"}, OptionError, "Did you mean mu"),
        (conjugate, {}, ModelError, "observes nothing"),
        (conjugate, {"observed": "y", "num_simulations": 20}, OptionError, "at least 200"),
        (conjugate, {"observed": "y", "flow": "nfs"}, OptionError, "Did you mean 'nsf'"),
        (conjugate, {"observed": "y", "summary": "sets"}, OptionError, "'set', 'series'"),
        (conjugate, {"observed": "y", "num_simulation": 500}, TypeError, "num_simulations"),
        (conjugate, {"observed": "y", "args": 3}, OptionError, "tuple"),
        (improper, {"observed": "y"}, ModelError, "improper"),
        (factored, {"observed": "y"}, ModelError, "pyro.factor"),
        (overflowing(0.5), {"observed": "y", "sites": "mu"}, ModelError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_amortised_is_refused_in_a_sentence(model, options, error, words):
    with pytest.raises(error, match=words):
        nfvi.amortise(model, **{**FEW, **options})


def test_simulations_that_are_not_finite_are_counted():
    with pytest.warns(DataWarning, match=r"\d+ of 300 simulations have NaN or infinite"):
        made = nfvi.amortise(overflowing(0.05), observed="y", sites="mu", flow="affine", **FEW)
    assert 0 < made.record.left_out < 40
    assert f"{made.record.left_out} left out as not finite" in made.report


@pytest.mark.parametrize("scored", [True, False], ids=["with a density", "without"])
def test_posteriors_go_to_arviz(scored, request):
    made = request.getfixturevalue("posterior" if scored else "without_density")
    found = made(data_sets(1)[0]).to_arviz(num_samples=20)
    assert dict(found["posterior"]["mu"].sizes)["draw"] == 20
    assert ("log_likelihood" in set(map(str, found.groups()))) == scored or scored
    assert "log_q" in found["sample_stats"]
