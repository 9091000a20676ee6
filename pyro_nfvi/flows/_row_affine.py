"""A shift and a scale for each coordinate, of which some count more than once."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi.flows._base import Flow


@final
class RowAffine(Flow):
    r"""An affine map :math:`y = \mu + \sigma x` of given numbers, the outer map of rows of plates.

    It trains nothing: its numbers belong to tables of a guide. A coordinate of weight w counts w
    times in the log-determinant, as in :class:`~pyro_nfvi.flows._plate_flow.PlateFlow`.

    Args:
        loc: Shift ``(D,)``.
        scale: Positive scale ``(D,)``.
        weight: How often each coordinate counts, ``(D,)``; once if None.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows._row_affine import RowAffine
        >>> y, ladj = RowAffine(torch.zeros(2), torch.full((2,), 3.0))(torch.ones(2))
        >>> y
        tensor([3., 3.])
    """

    def __init__(self, loc: Tensor, scale: Tensor, weight: Tensor | None = None) -> None:
        super().__init__(int(loc.shape[-1]))
        # Buffers, not parameters: their owner trains them.
        self.register_buffer("loc", loc, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.loc: Tensor
        self.scale: Tensor
        self.weight: Tensor | None

    def _ladj(self, like: Tensor) -> Tensor:
        log_scale = self.scale.log()
        total = (log_scale if self.weight is None else self.weight * log_scale).sum(-1)
        return total.expand(like.shape[:-1])

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        return self.loc + self.scale * x, self._ladj(x)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        return (y - self.loc) / self.scale, -self._ladj(y)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        with torch.no_grad():
            return y, ladj, score.expand_as(y) / self.scale
