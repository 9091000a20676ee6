"""Standard normal noise of which some coordinates count more than once."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._validation import sizes
from pyro_nfvi.distributions._bases import Base, Shape


@final
class WeightedNoise(Base):
    r"""Noise of a mini-batch: :math:`\sum_i w_i \log N(\varepsilon_i; 0, 1)`.

    With :math:`w = N / B` for the coordinates of B rows of N it is an unbiased estimate of the log
    density of the noise of all rows.

    Args:
        weight: Times that each coordinate counts, ``(D,)``.

    Example:
        >>> import torch
        >>> from pyro_nfvi.guides._weighted_noise import WeightedNoise
        >>> WeightedNoise(torch.tensor([1.0, 2.0])).log_prob(torch.zeros(2))
        tensor(-2.7568)
    """

    symmetric = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__(len(weight))
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor

    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        like = self.weight
        return torch.randn(
            *sizes(shape), self.dim, dtype=like.dtype, device=like.device, generator=generator
        )

    def log_prob(self, value: Tensor) -> Tensor:
        self.enter(value)
        return (self.weight * standard_normal_log_prob(value)).sum(-1)
