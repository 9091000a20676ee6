"""Missing observations: masked NaN and obs_mask give the evidence of what was seen."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nfvi import NFVI, to_arviz
from pyro_nfvi.errors import ModelError

Y = torch.tensor([1.0, torch.nan, 4.0])
SEEN = ~torch.isnan(Y)


def stand_ins(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=SEEN)


def masked_distribution(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0).mask(SEEN), obs=y)


def masked_handler(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 3), poutine.mask(mask=SEEN):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked_rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 3), poutine.mask(mask=SEEN):
        rows = torch.stack([y, torch.zeros(3)], -1)
        loc = torch.stack([mu, torch.zeros_like(mu)], -1)
        pyro.sample("y", dist.Normal(loc.unsqueeze(-2), 1.0).to_event(1), obs=rows)


@pytest.mark.parametrize("hole", [torch.nan, 0.0])
@pytest.mark.parametrize("model", [stand_ins, masked_distribution, masked_handler, masked_rows])
def test_what_is_missing_does_not_count(model, hole):
    """y1, y3 ~ N(mu, 1), mu ~ N(0, 3): the evidence in closed form, whatever stands for y2."""
    y = torch.where(SEEN, Y, hole)
    fit = NFVI(model, "affine", seed=0, progress=False, max_steps=40, explore="off").run(y)
    exact = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 9).log_prob(Y[SEEN])
    if model is masked_rows:
        exact = exact + 2 * dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    # 2,000 draws of weights that are nearly constant; the stand-ins are correlated with mu, which
    # a Gaussian guide holds too.
    assert abs(fit.log_evidence()[0] - float(exact)) < 0.05
    variance = 1 / (2 + 1 / 9)
    assert abs(fit.summary()["mu"].mean - 5 * variance) < 0.1
    assert abs(fit.summary()["mu"].sd / variance**0.5 - 1) < 0.1
    idata = to_arviz(fit, num_samples=20)
    site = "y_observed" if model is stand_ins else "y"
    assert bool((idata["log_likelihood"][site].values[..., 1] == 0).all())
    if model is stand_ins:
        value = torch.as_tensor(idata["posterior"]["y"].values[0])
        assert torch.equal(value[:, SEEN], Y[SEEN].expand(20, 2))
        # The missing one is imputed: N(mu, 1) around the posterior of mu, sd about 1.2.
        assert 0.4 < value[:, 1].std() < 2.5


def test_nan_that_counts_is_still_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([False, True, True])):
            pyro.sample("y", dist.Normal(mu, 1.0, validate_args=False), obs=y)

    with pytest.raises(ModelError, match="'y' has 1 NaN of 3"):
        NFVI(model, "affine", progress=False).run(Y)
