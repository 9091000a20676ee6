"""The contract of a density with trained parameters: what fits and dequantisers ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_nfvi._typing import Contexts, Points, Rows
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
