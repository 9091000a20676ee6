"""NUTS through a fitted flow: what it says of the fit."""

import pyro
import pyro.distributions as dist
import torch

from pyro_nfvi import NFVI


def test_a_guide_that_is_too_narrow_is_seen_from_the_posterior():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wider", -dist.Normal(0.0, 1.0).log_prob(x) + dist.Cauchy(0.0, 1.0).log_prob(x))

    fit = NFVI(model, "affine", max_steps=30, seed=0, progress=False, explore="off").run()
    nuts = fit.to_nuts(num_samples=200, warmup_steps=50, num_chains=1, seed=0, progress=False)
    assert nuts.khat > 0.7
