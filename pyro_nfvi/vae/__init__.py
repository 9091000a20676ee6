"""Variational autoencoders with a flow posterior: model, losses, data, evaluation, pictures."""

from __future__ import annotations

from pyro_nfvi._eval_mode import training_pass
from pyro_nfvi.vae._conv_networks import ConvDecoder, ConvEncoder
from pyro_nfvi.vae._count_likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_nfvi.vae._datasets import load_data
from pyro_nfvi.vae._dense_networks import DenseDecoder, DenseEncoder
from pyro_nfvi.vae._evaluation import evaluate
from pyro_nfvi.vae._hierarchical import HierarchicalVAE
from pyro_nfvi.vae._likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, LogitNormal
from pyro_nfvi.vae._logistic_mixture import LogisticMixture
from pyro_nfvi.vae._losses import ELBOLoss, IWAELoss, Loss, VAELoss
from pyro_nfvi.vae._masked import Masked
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._pictures import (
    plot_interpolation,
    plot_posterior,
    plot_reconstructions,
    plot_samples,
)
from pyro_nfvi.vae._pixels import binarize, choose_preparation
from pyro_nfvi.vae._priors import MixturePrior, Prior, VampPrior
from pyro_nfvi.vae._resnet_networks import ResNetDecoder, ResNetEncoder
from pyro_nfvi.vae._student_t import StudentT
from pyro_nfvi.vae.train._callbacks import Callback, CSVLogger, TensorBoardLogger
from pyro_nfvi.vae.train._fit import fit
from pyro_nfvi.vae.train._run_folder import load

#: The earlier name of :func:`load`.
load_vae = load

__all__ = [
    "Bernoulli",
    "CSVLogger",
    "Callback",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "DenseDecoder",
    "DenseEncoder",
    "ELBOLoss",
    "FlowVAE",
    "Gaussian",
    "HierarchicalVAE",
    "IWAELoss",
    "Likelihood",
    "LogisticMixture",
    "LogitNormal",
    "Loss",
    "Masked",
    "MixturePrior",
    "NegativeBinomial",
    "Poisson",
    "Prior",
    "ResNetDecoder",
    "ResNetEncoder",
    "StudentT",
    "TensorBoardLogger",
    "VAELoss",
    "VampPrior",
    "ZeroInflatedNegativeBinomial",
    "binarize",
    "choose_preparation",
    "evaluate",
    "load_data",
    "fit",
    "load",
    "plot_interpolation",
    "plot_posterior",
    "plot_reconstructions",
    "plot_samples",
    "training_pass",
]
