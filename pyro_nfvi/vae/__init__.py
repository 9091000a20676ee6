"""The flow-augmented VAE: model, objectives, evaluation, data and training."""

from __future__ import annotations

from pyro_nfvi._modes import training_pass
from pyro_nfvi.objectives.schedules import (
    Constant,
    Cyclic,
    Linear,
    Schedule,
    Tempered,
    schedule_from_spec,
)
from pyro_nfvi.vae.architecture import Architecture
from pyro_nfvi.vae.checkpoint import load_vae
from pyro_nfvi.vae.conv import ConvDecoder, ConvEncoder
from pyro_nfvi.vae.data import ImageData, load_data
from pyro_nfvi.vae.evaluate import Evaluation, active_units, collapse_warning, evaluate
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
from pyro_nfvi.vae.pictures import (
    plot_curves,
    plot_interpolation,
    plot_posterior,
    plot_reconstructions,
    plot_samples,
)
from pyro_nfvi.vae.pixels import Preparation, binarize, choose_preparation, dequantize
from pyro_nfvi.vae.posterior import Draws, Posterior
from pyro_nfvi.vae.terms import ELBO

__all__ = [
    "ELBO",
    "NLL",
    "Architecture",
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
    "Evaluation",
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
    "active_units",
    "binarize",
    "choose_preparation",
    "collapse_warning",
    "dequantize",
    "evaluate",
    "load_data",
    "load_vae",
    "make_likelihood",
    "plot_curves",
    "plot_interpolation",
    "plot_posterior",
    "plot_reconstructions",
    "plot_samples",
    "schedule_from_spec",
    "training_pass",
]
