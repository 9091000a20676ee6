"""Learnt likelihoods, rounds for one data set, and files."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi.amortised import AmortisedPosterior
from pyro_nfvi.errors import FileError, ModelError, OptionError
from pyro_nfvi.infer._findings import LearntLikelihood, UnusualData, find

QUICK = {"flow": "tril", "progress": False, "seed": 0, "training": {"max_steps": 800, "lr": 5e-3}}


def hierarchy():
    """A scale, a mean that depends on it, and a simulator without density or gradient."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.2))
    mu = pyro.sample("mu", dist.Normal(0.0, scale))
    noise = pyro.sample("noise", dist.Normal(0.0, 0.5))
    with torch.no_grad():
        pyro.deterministic("y", mu + noise)


def exact_mu(y, count=200_000):
    """Mean and sd of mu given y, by weights of draws of the scale."""
    scale = torch.exp(0.2 * torch.randn(count, generator=torch.Generator().manual_seed(0)))
    variance = scale**2 + 0.25
    weight = (-0.5 * y**2 / variance - 0.5 * variance.log()).softmax(0)
    mean, square = scale**2 / variance * y, 0.25 * scale**2 / variance
    first = (weight * mean).sum()
    return float(first), float((weight * (square + mean**2)).sum() - first**2) ** 0.5


@pytest.fixture(scope="module")
def posterior():
    return nfvi.amortise(
        hierarchy, observed="y", sites=["scale", "mu"], num_simulations=2000, **QUICK
    )


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_learnt_likelihood_gives_the_posterior_under_the_models_own_prior(rounds):
    data = 1.5 if rounds > 1 else None
    made = nfvi.amortise(
        hierarchy, observed="y", sites=["scale", "mu"], method="likelihood",
        num_simulations=2000, rounds=rounds, data=data, **QUICK,
    )  # fmt: skip
    fit = made(1.5, guide="tril", max_steps=300, progress=False, explore="off")
    mean, sd = exact_mu(1.5)
    row = fit.summary()["mu"]
    # 0.1 of the sd of the data set's posterior, and of its size.
    assert row.mean == pytest.approx(mean, abs=0.1 * 0.6)
    assert row.sd == pytest.approx(sd, rel=0.12)
    assert made.record.rounds == rounds
    assert find(fit.training.findings, LearntLikelihood).simulations == 2000
    assert not find(fit.training.findings, UnusualData).unusual
    assert fit.verdict != "good"
    assert "cannot see what it got wrong" in " ".join(fit.verdict.reasons)
    if rounds > 1:
        far = made(40.0, guide="affine", max_steps=50, progress=False, explore="off")
        assert far.verdict == "do not trust"


@pytest.mark.slow
def test_a_fit_of_a_learnt_likelihood_comes_back_from_its_file(tmp_path):
    made = nfvi.amortise(
        hierarchy, observed="y", sites=["scale", "mu"], method="likelihood", num_simulations=300,
        **{**QUICK, "training": {"max_steps": 100}},
    )  # fmt: skip
    fit = made(1.0, guide="affine", max_steps=50, progress=False, explore="off")
    fit.save(tmp_path / "fit.nfvi")
    again = nfvi.load(tmp_path / "fit.nfvi")
    assert find(again.training.findings, LearntLikelihood) is not None


def test_a_prior_that_depends_on_what_is_summed_out_is_refused():
    made = nfvi.amortise(
        hierarchy, observed="y", sites="mu", method="likelihood", num_simulations=300,
        **{**QUICK, "training": {"max_steps": 50}},
    )  # fmt: skip
    with pytest.raises(ModelError, match="random"):
        made(1.0, guide="affine", max_steps=50, progress=False)


@pytest.mark.slow
def test_rounds_confine_the_prior_and_leave_the_posterior(posterior):
    made = nfvi.amortise(
        hierarchy, observed="y", sites=["scale", "mu"], num_simulations=2000, rounds=2, data=1.5,
        **QUICK,
    )  # fmt: skip
    mean, sd = exact_mu(1.5)
    row = made(1.5).summary()["mu"]
    assert row.mean == pytest.approx(mean, abs=0.1 * 0.6)
    assert row.sd == pytest.approx(sd, rel=0.12)
    assert "in 2 rounds" in made.report
    with pytest.raises(ModelError, match="trained in rounds"):
        made.calibration(100)
    # Data that the first round would have taken for ordinary lie outside of the second's.
    assert not find(posterior(-3.0).findings, UnusualData).unusual
    assert find(made(-3.0).findings, UnusualData).unusual


def test_a_posterior_comes_back_from_its_file(posterior, tmp_path):
    path = tmp_path / "posterior.nfvi"
    posterior.save(path)
    again = AmortisedPosterior.load(path, hierarchy)
    one, two = posterior(1.0), again(1.0)
    assert torch.equal(one.draws.z, two.draws.z)
    assert one.verdict == two.verdict
    assert one.verdict.reasons == two.verdict.reasons
    assert again.record == posterior.record
    assert torch.equal(
        again.calibration(50, seed=1).region, posterior.calibration(50, seed=1).region
    )


def test_a_file_of_another_model_or_a_damaged_one_is_refused(posterior, tmp_path):
    path = tmp_path / "posterior.nfvi"
    posterior.save(path)

    def other():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.2))
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        pyro.deterministic("y", torch.stack([mu, scale], -1), event_dim=1)

    with pytest.raises(FileError, match="its observed is {'y': \\[\\]}, not {'y': \\[2\\]}"):
        AmortisedPosterior.load(path, other)
    with pytest.raises(FileError, match="another model"):
        AmortisedPosterior.load(path, lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    with pytest.raises(FileError, match="amortised posterior"):
        nfvi.load(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileError, match="truncated or damaged"):
        AmortisedPosterior.load(path, hierarchy)


def counted():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Poisson(mu.exp()))


def failing():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("y", torch.where(mu > 1.5, math.nan, mu))


@pytest.mark.filterwarnings("ignore:.*simulations have NaN")
@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (counted, {"method": "likelihood"}, OptionError, "'y' are whole numbers"),
        (failing, {"method": "likelihood"}, ModelError, "the likelihood would be another"),
        (hierarchy, {"method": "likelihood", "summary": "set"}, OptionError, "leave summary out"),
        (hierarchy, {"method": "ratio"}, OptionError, "'posterior' or 'likelihood'"),
        (hierarchy, {"rounds": 2}, OptionError, "pass data="),
        (hierarchy, {"data": 1.0}, OptionError, "rounds=2 and more"),
        (hierarchy, {"rounds": 2, "data": 1.0}, OptionError, "fewer than 200 in each"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(model, options, error, words):
    with pytest.raises(error, match=words):
        nfvi.amortise(model, observed="y", num_simulations=300, **options, progress=False)
