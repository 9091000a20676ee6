"""The posterior of a mixture guide as a Pyro distribution, with a gradient for its weights."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import Points, Rows
from pyro_nfvi.distributions._mixture import MixtureDensity


class MixturePosterior(dist.TorchDistribution):
    r"""A mixture density of the unconstrained vector, for one call.

    A draw is a differentiable function of the parameters of its component, not of the weights:
    those get a score-function term, :math:`\sum_k r_k(z) \log w_k` with the responsibilities
    :math:`r_k` held, which is the term of the chosen component averaged over what could have been
    chosen. Where several particles are drawn together, their mean is taken out (the baseline of
    the other particles), so that a constant in the log joint adds no noise.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, density: MixtureDensity, batch_shape: torch.Size | None = None) -> None:
        self.density = density
        size = torch.Size([density.dim])
        super().__init__(batch_shape or torch.Size(), size, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixturePosterior:
        return MixturePosterior(self.density, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        eps = self.density.sample_base((*sample_shape, *self.batch_shape))
        return self.density.push(eps)[0]

    def log_prob(self, value: Points) -> Rows:
        found = self.density.log_prob(value)
        return found.expand(broadcast_shape(found.shape, self.batch_shape))

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
