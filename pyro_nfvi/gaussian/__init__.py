"""Gaussian approximations of an unnormalised density, fitted without tuning.

What a flow starts from: :func:`fit_gaussian` runs several starts at once, by batch and match
(:func:`match`) and by whitened natural-gradient ascent of the bound (:func:`whiten`).
"""

from pyro_nfvi.gaussian.assignment import assign
from pyro_nfvi.gaussian.batch_match import match
from pyro_nfvi.gaussian.climb import ascend
from pyro_nfvi.gaussian.explore import MOST_MODES, Modes, explore
from pyro_nfvi.gaussian.fit import GaussianFit, fit_gaussian
from pyro_nfvi.gaussian.low_rank import MOST_DIRECTIONS, LowRankGaussian, add_directions
from pyro_nfvi.gaussian.modes import other_modes
from pyro_nfvi.gaussian.nested import OUTSIDE, add_nested, narrow, outside_of
from pyro_nfvi.gaussian.normals import Normals
from pyro_nfvi.gaussian.proposals import Proposals
from pyro_nfvi.gaussian.tail_index import tail_indices, tail_moments
from pyro_nfvi.gaussian.target import Target
from pyro_nfvi.gaussian.weights import mixture_weights
from pyro_nfvi.gaussian.whiten import whiten

__all__ = [
    "MOST_DIRECTIONS",
    "MOST_MODES",
    "OUTSIDE",
    "GaussianFit",
    "LowRankGaussian",
    "Modes",
    "Normals",
    "Proposals",
    "Target",
    "add_directions",
    "add_nested",
    "ascend",
    "assign",
    "explore",
    "fit_gaussian",
    "match",
    "mixture_weights",
    "narrow",
    "other_modes",
    "tail_indices",
    "tail_moments",
    "outside_of",
    "whiten",
]
