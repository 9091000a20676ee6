"""``FlatPrior``: density 1 on all reals, with a point to start from."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._math import broadcast_shape

_ALONE = torch.Size()


class FlatPrior(TorchDistribution):
    """Density 1 in every number of one site, on all of the reals; it cannot be drawn from.

    Args:
        start: Point ``(*shape)`` from which searches begin, in place of the origin; its dtype and
            device are those of the site.

    Raises:
        NotImplementedError: A draw is asked for.

    Example:
        >>> import torch
        >>> from pyro_nfvi._pyro_model.flat_prior import FlatPrior
        >>> FlatPrior(torch.zeros(3)).log_prob(torch.randn(5, 3))
        tensor([0., 0., 0., 0., 0.])
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, start: Tensor, batch_shape: torch.Size = _ALONE) -> None:
        self.start = start
        super().__init__(batch_shape, start.shape, validate_args=False)

    @property
    def support(self) -> Any:
        """All reals."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> FlatPrior:
        """Repeat it."""
        return FlatPrior(self.start, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = _ALONE) -> NoReturn:
        """Refuse to draw."""
        raise NotImplementedError("A flat prior cannot be drawn from.")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 for every value."""
        lead = value.dim() - len(self.event_shape)
        return value.new_zeros(broadcast_shape(value.shape[:lead], self.batch_shape))
