"""The flow-augmented VAE: model, objectives, evaluation, data and training."""

from __future__ import annotations

from pyro_nfvi.vae.conv import ConvDecoder, ConvEncoder
from pyro_nfvi.vae.data import ImageData, load_data
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
from pyro_nfvi.vae.objectives import ELBOLoss, IWAELoss, Loss, VAELoss
from pyro_nfvi.vae.pixels import Preparation, binarize, choose_preparation, dequantize
from pyro_nfvi.vae.posterior import Draws, Posterior
from pyro_nfvi.vae.schedules import (
    Constant,
    Cyclic,
    Linear,
    Schedule,
    Tempered,
    schedule_from_spec,
)
from pyro_nfvi.vae.terms import ELBO

__all__ = [
    "ELBO",
    "NLL",
    "Bernoulli",
    "Categorical",
    "Constant",
    "ConvDecoder",
    "ConvEncoder",
    "Cyclic",
    "DenseDecoder",
    "DenseEncoder",
    "Draws",
    "ELBOLoss",
    "FlowVAE",
    "Gaussian",
    "IWAELoss",
    "ImageData",
    "Likelihood",
    "Linear",
    "LogitNormal",
    "Loss",
    "Posterior",
    "Preparation",
    "Schedule",
    "Tempered",
    "VAELoss",
    "binarize",
    "choose_preparation",
    "dequantize",
    "load_data",
    "make_likelihood",
    "schedule_from_spec",
]
