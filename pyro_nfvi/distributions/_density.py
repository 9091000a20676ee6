"""The contracts of densities with trained parameters: of one flow, and of other maps of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, Rows, TensorPair
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.flows._base import Flow


class Density(nn.Module, ABC):
    """Base noise pushed through a flow, with a log density at every point."""

    flow: Flow
    base: Base | Distribution | None

    #: Whether points a whole turn apart are the same point.
    periodic = False

    def representative(self, z: Points) -> Points:
        """Return the point among those which are the same as z that draws are; z on the reals."""
        return z

    @abstractmethod
    def sample_base(
        self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw base noise ``(*shape, D)``."""

    @abstractmethod
    def base_log_prob(self, eps: Points) -> Rows:
        """Score base noise, ``(*b, D) -> (*b,)`` in nats."""

    @abstractmethod
    def log_prob(self, z: Points, context: Contexts | None = None) -> Rows:
        """Score points, ``(*b, D) -> (*b,)`` in nats."""


class NoiseDensity(nn.Module, ABC):
    """A density of draws that are a function of standard normal noise, and of no single flow.

    Attributes:
        dim: Size of a point, D; noise has another size, as a rule.
    """

    dim: int
    #: Noise is standard normal, and comes from a generator where one is given.
    base: None = None
    takes_generator = True

    @abstractmethod
    def sample_base(
        self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw base noise ``(*shape, E)``."""

    @abstractmethod
    def push(self, eps: Tensor, context: Contexts | None = None) -> Image:
        """Map noise to ``(z, log_q)``, differentiable in the parameters."""

    @abstractmethod
    def draw(self, eps: Tensor) -> Tensor:
        """Map noise to points ``(*b, D)`` alone."""

    @abstractmethod
    def log_prob(self, z: Points, context: Contexts | None = None) -> Rows:
        """Score any point: ``(*b, D) -> (*b,)``, differentiable in point and parameters."""

    def forward(self, z: Points, context: Contexts | None = None) -> Rows:
        # So that functional_call can score with other parameters.
        return self.log_prob(z, context)

    @full_precision
    def push_with_score(self, eps: Tensor, context: Contexts | None = None) -> ImageAndScore:
        r"""Map noise to ``(z, log_q, score)``, the score :math:`\nabla_z \log q(z)` detached."""
        z, log_q = self.push(eps, context)
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(point).sum(), point)
        return z, log_q, score

    def rsample_and_log_prob(
        self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> TensorPair:
        """Draw ``(z, log_q)`` in one pass."""
        return self.push(self.sample_base(shape, generator=generator))
