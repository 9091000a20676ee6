"""The guide's posterior as a Pyro distribution."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor

__all__ = ["FlowPosterior"]


class FlowPosterior(dist.TransformedDistribution):
    """Base noise through the guide's flow, with the location and spread the guide can tell.

    ``mean`` is the posterior median and ``variance`` the squared half-width of the central
    68.27 % interval, per unconstrained coordinate: both agree with the guide's ``quantiles``,
    equal mean and variance for a Gaussian, and exist for every tail.
    """

    _loc_scale: Callable[[], tuple[Tensor, Tensor]] | None = None

    def _spread(self) -> tuple[Tensor, Tensor]:
        if self._loc_scale is None:
            raise NotImplementedError("Only the guide's own, unexpanded posterior has moments.")
        return self._loc_scale()

    @property
    def mean(self) -> Tensor:
        """Median of each unconstrained coordinate."""
        return self._spread()[0]

    @property
    def stddev(self) -> Tensor:
        """Half the width of the central 68.27 % interval of each unconstrained coordinate."""
        return self._spread()[1]

    @property
    def variance(self) -> Tensor:
        """Square of ``stddev``."""
        return self._spread()[1].square()
