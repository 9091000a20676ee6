"""The posterior of a mixture guide as a Pyro distribution, with a gradient for its weights."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.guides._density_posterior import DensityPosterior


class MixturePosterior(DensityPosterior):
    r"""A mixture density of the unconstrained vector, for one call.

    A draw is a differentiable function of the parameters of its component, not of the weights:
    those get a score-function term, :math:`\sum_k r_k(z) \log w_k` with the responsibilities
    :math:`r_k` held, which is the term of the chosen component averaged over what could have been
    chosen. Where several particles are drawn together, their mean is taken out (the baseline of
    the other particles), so that a constant in the log joint adds no noise.
    """

    density: MixtureDensity

    def score_parts(self, value: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        each = self.density.components(value) + self.density.log_weights
        log_prob = torch.logsumexp(each, -1)
        held = torch.softmax(each.detach(), -1)
        score = (held * self.density.log_weights).sum(-1)
        count = score.numel()
        if count > 1:
            score = (score - score.mean()) * (count / (count - 1))
        # What Trace_ELBO multiplies the score with leaves out the density of auxiliary sites, as
        # this one is; the missing part goes where it is subtracted.
        return ScoreParts(log_prob, score, log_prob + log_prob.detach() * score)
