"""The guide's posterior as a Pyro distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import Location, Points, Rows
from pyro_nfvi.distributions._bases import Base


class BaseNoise(dist.TorchDistribution):
    """A base of :mod:`pyro_nfvi.distributions` as a Pyro distribution, for one call."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Base, batch_shape: torch.Size | None = None) -> None:
        self.base = base
        super().__init__(batch_shape or torch.Size(), base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BaseNoise:
        return BaseNoise(self.base, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample((*sample_shape, *self.batch_shape))

    def log_prob(self, value: Points) -> Rows:
        found = self.base.log_prob(value)
        return found.expand(broadcast_shape(found.shape, self.batch_shape))


class FlowPosterior(dist.TransformedDistribution):
    """Base noise through the guide's flow, with the location and spread the guide can tell.

    ``mean`` is the posterior median and ``variance`` the squared half-width of the central
    68.27 % interval, per unconstrained coordinate: both agree with the guide's ``quantiles``,
    equal mean and variance for a Gaussian, and exist for every tail.
    """

    _loc_scale: Callable[[], tuple[Tensor, Tensor]] | None = None

    def _spread(self) -> tuple[Location, Location]:
        if self._loc_scale is None:
            raise NotImplementedError("Only the guide's own, unexpanded posterior has moments.")
        return self._loc_scale()

    @property
    def mean(self) -> Location:
        """Median of each unconstrained coordinate."""
        return self._spread()[0]

    @property
    def stddev(self) -> Location:
        """Half the width of the central 68.27 % interval of each unconstrained coordinate."""
        return self._spread()[1]

    @property
    def variance(self) -> Location:
        """Square of ``stddev``."""
        return self._spread()[1].square()
