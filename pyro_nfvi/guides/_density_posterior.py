"""A guide's density of the unconstrained vector as a Pyro distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import Points, Rows


class DensityPosterior(dist.TorchDistribution):
    """A density that draws from noise of its own and scores any point, for one call."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, density: Any, batch_shape: torch.Size | None = None) -> None:
        self.density = density
        size = torch.Size([density.dim])
        super().__init__(batch_shape or torch.Size(), size, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DensityPosterior:
        return type(self)(self.density, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        eps = self.density.sample_base((*sample_shape, *self.batch_shape))
        return self.density.push(eps)[0]

    def log_prob(self, value: Points) -> Rows:
        found = self.density.log_prob(value)
        return found.expand(broadcast_shape(found.shape, self.batch_shape))
