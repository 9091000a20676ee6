"""The flow-augmented VAE: model, objectives, evaluation, data and training."""

from __future__ import annotations

from pyro_nfvi.vae.conv import ConvDecoder, ConvEncoder
from pyro_nfvi.vae.importance import NLL
from pyro_nfvi.vae.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LogitNormal,
    make_likelihood,
)
from pyro_nfvi.vae.model import FlowVAE
from pyro_nfvi.vae.nets import DenseDecoder, DenseEncoder
from pyro_nfvi.vae.posterior import Draws, Posterior
from pyro_nfvi.vae.terms import ELBO

__all__ = [
    "ELBO",
    "NLL",
    "Bernoulli",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "DenseDecoder",
    "DenseEncoder",
    "Draws",
    "FlowVAE",
    "Gaussian",
    "Likelihood",
    "LogitNormal",
    "Posterior",
    "make_likelihood",
]
