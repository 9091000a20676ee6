"""The uniform distribution of angles, for flows on circles."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from pyro_nfvi._validation import sizes
from pyro_nfvi.distributions._bases import Base, Shape


@final
class UniformAngles(Base):
    r"""Independent uniform angles: noise on the torus, with nothing to learn.

    .. math:: \log q_0(\varepsilon) = -D \log 2\pi

    The base of densities of angles: ``FlowDensity(make_flow("ncsf*2", dim), UniformAngles(dim))``.
    Such a density lives on the circle. It takes any real number for an angle, has the same value a
    whole turn further, and integrates to 1 over one turn.

    Args:
        dim: Number D of angles.

    Shape:
        Draws are in :math:`[-\pi, \pi)`, in radians.

    Cost:
        O(D) per draw and score.

    Raises:
        OptionError: From :class:`pyro_nfvi.FlowDensity`, with a flow that does not map circles to
            circles. Take ``"ncsf"`` or ``"moebius"``.

    Source: Rezende et al. 2020, arXiv:2002.02428, section 2.1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import UniformAngles
        >>> round(float(UniformAngles(1).log_prob(torch.tensor([2.0]))), 4)
        -1.8379
    """

    periodic = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        # Tells dtype and device.
        self.register_buffer("centre", torch.zeros(()), persistent=False)
        self.centre: Tensor

    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.empty((*sizes(shape), self.dim)).to(self.centre)
        return drawn.uniform_(-math.pi, math.pi, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        self.enter(value)
        found = torch.full_like(value, -math.log(2 * math.pi))
        return torch.where(value.isfinite(), found, value * 0).sum(-1)  # NaN at no number
