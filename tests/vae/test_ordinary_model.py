"""A VAE written as an ordinary model, with a plate guide, beside the one of this package."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE

SHAPE, LATENT, HIDDEN, BATCH, STEPS = (6, 6), 2, 24, 64, 2000


def images(count, seed):
    """Binary images whose pixels follow two hidden numbers, the same way for each seed."""
    generator = torch.Generator().manual_seed(7)
    first = 1.5 * torch.randn(LATENT, 12, generator=generator)
    second = torch.randn(12, 36, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, LATENT, generator=generator)
    rate = torch.sigmoid(2 * torch.tanh(z @ first) @ second)
    return torch.bernoulli(rate, generator=generator).reshape(count, *SHAPE)


def ordinary(decoder):
    def model(x, batch=None):
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x), subsample_size=batch) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            logits = decoder(z.reshape(-1, LATENT)).reshape(*z.shape[:-1], *SHAPE)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x[rows])

    return model


def encoder():
    """The layers of ``DenseEncoder``, whose last ones the guide has."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2 * HIDDEN), nn.GLU())


def trained(model, guide, arguments):
    """Train by Adam with a rate that falls to a tenth."""
    options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 5e-3}}
    optim = pyro.optim.ExponentialLR(options | {"gamma": 0.1 ** (1 / STEPS)})
    svi = SVI(model, guide, optim, Trace_ELBO())
    for _ in range(STEPS):
        svi.step(*arguments())
        optim.step()
    return svi


def bound(svi, x):
    """Mean bound of an image, in nats, by 40 draws of each."""
    return -sum(svi.evaluate_loss(x) for _ in range(40)) / 40 / len(x)


@pytest.mark.slow
def test_an_ordinary_model_reaches_the_bound_of_the_vae_of_this_package():
    """On images that neither has seen: 0.02 nats apart by the seeds 0 and 1."""
    x, new = images(2000, 0), images(1000, 1)
    pyro.set_rng_seed(0)
    model = ordinary(DenseDecoder(LATENT, SHAPE, hidden=(HIDDEN,)))
    guide = AutoPlateFlow(model, local="iaf*2", encoder={"images": encoder()}, init_scale=0.5)
    ours = bound(trained(model, guide, lambda: (x, BATCH)), new)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = FlowVAE(
        DenseEncoder(SHAPE, LATENT, hidden=(HIDDEN,), context_dim=HIDDEN),
        DenseDecoder(LATENT, SHAPE, hidden=(HIDDEN,)),
        LATENT,
        context_dim=HIDDEN,
        flow="iaf*2",
    )
    svi = trained(vae.model, vae.guide, lambda: (x[torch.randperm(len(x))[:BATCH]],))
    theirs = bound(svi, new)
    assert theirs > -25.0 + 2  # a constant rate for each pixel has -25
    assert abs(ours - theirs) < 0.1
