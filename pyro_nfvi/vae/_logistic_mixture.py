"""The discretised mixture of logistic distributions, a likelihood of grey levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import soft_clamp
from pyro_nfvi._validation import whole
from pyro_nfvi.vae._likelihoods import Categorical, Likelihood
from pyro_nfvi.vae._recipe import NETWORKS


@dataclass(frozen=True)
class LogisticMixture(Likelihood):
    r"""Pixels 0 .. L-1 as rounded draws from a mixture of K logistic distributions.

    .. math:: P(x) = \sum_k w_k \Bigl[\sigma\Bigl(\frac{y + \delta - m_k}{s_k}\Bigr)
        - \sigma\Bigl(\frac{y - \delta - m_k}{s_k}\Bigr)\Bigr], \qquad y = \frac{2x}{L-1} - 1,
        \quad \delta = \frac{1}{L-1}

    The lowest and the highest level take the tails. The decoder gives K logits, K locations (the
    pixels' range is -1 to 1) and K log scales, bounded smoothly at 5, on the last axis: 3 K numbers
    for a pixel where :class:`Categorical` takes L.

    Args:
        levels: Number of levels L.
        components: Number of logistic distributions K.

    Source: Salimans et al. 2017, arXiv:1701.05517, section 2.1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import LogisticMixture
        >>> grey = LogisticMixture(levels=256, components=5)
        >>> grey.log_prob(torch.zeros(7, 28, 28, 15), torch.zeros(7, 28, 28)).shape
        torch.Size([7])
    """

    levels: int = 256
    components: int = 5
    name: ClassVar[str] = "logistic-mixture"

    def __post_init__(self) -> None:
        whole("LogisticMixture: levels", self.levels, 2)
        whole("LogisticMixture: components", self.components)

    @property
    def num_params(self) -> int:
        return 3 * self.components

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return self._log_prob(params, x.to(params))

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log probability of single pixels; parameters ``(*b, 3 K)``, pixels ``(*b,)``."""
        logits, loc, raw = params.chunk(3, -1)
        scale = soft_clamp(raw, NETWORKS.log_scale).exp()
        half, top = 1 / (self.levels - 1), self.levels - 1
        centred = (2 * half * x - 1).unsqueeze(-1) - loc
        upper, lower = (centred + half) / scale, (centred - half) / scale
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no digits are lost.
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2 * half / scale))
        level = x.unsqueeze(-1)
        mass = torch.where(level <= 0, below, torch.where(level >= top, above, inside))
        return torch.logsumexp(torch.log_softmax(logits, -1) + mass, -1)

    def distribution(self, params: Tensor) -> Any:
        """Return the distribution over all L levels."""
        x = torch.arange(self.levels, dtype=params.dtype, device=params.device)
        table = self._log_prob(params.unsqueeze(-2), x.expand(*params.shape[:-1], self.levels))
        return dist.Categorical(logits=table, validate_args=False)

    def mean(self, params: Tensor) -> Tensor:
        levels = torch.arange(self.levels, dtype=params.dtype, device=params.device)
        mean: Tensor = self.distribution(params).probs @ levels
        return mean

    def encoder_input(self, x: Tensor) -> Tensor:
        return Categorical(self.levels).encoder_input(x)

    def check(self, x: Tensor) -> None:
        Categorical(self.levels).check(x)
