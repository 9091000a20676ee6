"""Laplace, Pathfinder and DADVI as guides by name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, AutoFlow, AutoMixture, load
from pyro_nfvi.errors import ModelError, OptionError

X = torch.tensor([[1.0, 0.2], [1.0, 0.9], [1.0, 1.4], [1.0, 2.2], [1.0, 3.0]])
Y = torch.tensor([0.3, 1.1, 0.9, 2.5, 2.7])


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def exact():
    covariance = torch.linalg.inv(X.T @ X / 0.25 + torch.eye(2) / 4)
    mean = covariance @ X.T @ Y / 0.25
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(5), 4 * X @ X.T + 0.25 * torch.eye(5)
    ).log_prob(Y)
    return mean, covariance, float(evidence)


def fitted(model, guide, *args, **options):
    return NFVI(model, guide, **{"explore": "off", "seed": 0, "progress": False, **options}).run(
        *args
    )


@pytest.mark.parametrize(
    ("guide", "tolerance"),
    # L-BFGS has not learnt all of a covariance when it arrives.
    [("laplace", 2e-3), ("dadvi", 2e-3), ("pathfinder*1", 0.2), ("pathfinder", 0.3)],
)
def test_a_conjugate_posterior(guide, tolerance):
    fit = fitted(regression, guide, X, Y)
    mean, covariance, evidence = exact()
    sd = covariance.diagonal().sqrt()
    z, _ = fit.guide.density().push(fit.guide.density().sample_base(20_000))
    # Of 20,000 draws a mean is off by 0.05 sd, or an entry by 0.06, once in 10^11.
    assert ((z.mean(0) - mean) / sd).abs().max() < 0.05 + tolerance
    assert ((torch.cov(z.T) - covariance) / sd.outer(sd)).abs().max() < 0.06 + tolerance
    found, error = fit.log_evidence()
    assert abs(found - evidence) < 4 * error + 1e-2
    assert fit.why_stopped == "converged"
    assert len(fit.losses) == 0
    assert "no steps of training" in fit.report
    assert f"({guide})" in fit.report
    assert isinstance(fit.guide, AutoMixture if guide == "pathfinder" else AutoFlow)


def test_linear_response_widens_what_a_mean_field_makes_too_narrow():
    fit = fitted(regression, "dadvi", X, Y)
    covariance = exact()[1]
    narrow = (torch.linalg.inv(covariance).diagonal().rsqrt() / covariance.diagonal().sqrt()).min()
    assert f"as small as {float(narrow):.2f}" in fit.why_stopped.detail


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(2 * a**2, 0.2))
    pyro.factor("no_data", torch.zeros(()))


@pytest.mark.parametrize("guide", ["laplace", "pathfinder", "dadvi"])
def test_a_gaussian_on_a_banana_is_not_good(guide):
    assert fitted(banana, guide).verdict != "good"


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["laplace", "pathfinder*1", "dadvi"])
def test_a_mode_that_was_missed_is_named(guide):
    def two():
        x = pyro.sample("x", dist.Normal(0.5, 3.0))
        pyro.sample("y", dist.Normal(x.abs(), 0.3), obs=torch.tensor(3.0))

    fit = fitted(two, guide, explore="starts")
    assert fit.verdict == "do not trust"
    assert "mode" in " ".join(fit.verdict.reasons)


@pytest.mark.parametrize("guide", ["laplace", "pathfinder"])
def test_files(guide, tmp_path):
    fit = fitted(regression, guide, X, Y)
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", model=regression, args=(X, Y))
    assert again.elbo == fit.elbo
    assert torch.equal(again.sample(5, seed=1)["beta"], fit.sample(5, seed=1)["beta"])


@pytest.mark.slow
def test_data_in_mini_batches_counts_whole():
    x, y = X.repeat(4, 1), Y.repeat(4)

    def batches(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("rows", len(y), subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(x[rows] @ beta, 0.5), obs=y[rows])

    part, whole = fitted(batches, "laplace", x, y), fitted(regression, "laplace", x, y)
    assert torch.allclose(
        part.guide.median()["beta"], whole.guide.median()["beta"], rtol=1e-3, atol=1e-3
    )


def test_what_cannot_be_done_is_refused():
    for guide, message in {
        "laplce": "Did you mean laplace",
        "laplace*2": "takes a number of paths",
        "pathfinder*0": "takes a number of paths",
    }.items():
        with pytest.raises(OptionError, match=message):
            NFVI(regression, guide)

    def flat():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("ridge", dist.Normal(0.0, 1e3).mask(False))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ModelError, match="along ridge it does not"):
        fitted(flat, "laplace", precondition=False)

    def many():
        pyro.sample("x", dist.Normal(torch.zeros(2001), 1.0).to_event(1))
        pyro.factor("no_data", torch.zeros(()))

    with pytest.raises(OptionError, match="up to 2000 latents"):
        fitted(many, "laplace", precondition=False)
