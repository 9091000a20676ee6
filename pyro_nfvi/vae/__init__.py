"""The flow-augmented VAE: model, objectives, evaluation, data and training."""

from __future__ import annotations

from pyro_nfvi._eval_mode import training_pass
from pyro_nfvi.objectives._schedules import (
    Constant,
    Cyclic,
    Linear,
    Schedule,
    Tempered,
    schedule_from_spec,
)
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._conv_networks import ConvDecoder, ConvEncoder
from pyro_nfvi.vae._datasets import ImageData, load_data
from pyro_nfvi.vae._dense_networks import DenseDecoder, DenseEncoder
from pyro_nfvi.vae._elbo_terms import ELBO
from pyro_nfvi.vae._evaluation import Evaluation, active_units, collapse_warning, evaluate
from pyro_nfvi.vae._importance_nll import NLL
from pyro_nfvi.vae._likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LogitNormal,
    make_likelihood,
)
from pyro_nfvi.vae._losses import ELBOLoss, IWAELoss, Loss, VAELoss
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._pictures import (
    plot_curves,
    plot_interpolation,
    plot_posterior,
    plot_reconstructions,
    plot_samples,
)
from pyro_nfvi.vae._pixels import Preparation, binarize, choose_preparation, dequantize
from pyro_nfvi.vae._posterior import Draws, Posterior
from pyro_nfvi.vae.train._run_folder import load_vae

__all__ = [
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
    "ELBO",
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
    "NLL",
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
