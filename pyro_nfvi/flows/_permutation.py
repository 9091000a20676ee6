"""Permutations of the coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow


@final
class Permute(Flow):
    """Reorder the coordinates: ``y[i] = x[order[i]]``; the log-determinant is 0.

    Args:
        order: A permutation of 0 .. D-1.

    Cost:
        One indexing operation each way.

    Raises:
        OptionError: ``order`` is not a permutation.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Permute
        >>> Permute.reversal(3)(torch.tensor([1.0, 2.0, 3.0]))[0]
        tensor([3., 2., 1.])
    """

    periodic = True

    def __init__(self, order: Sequence[int]) -> None:
        order = [whole("Permute: an index", index, 0) for index in order]
        if sorted(order) != list(range(len(order))):
            raise OptionError(
                f"Permute needs each of 0 .. {len(order) - 1} once; got {order[:20]}."
            )
        super().__init__(len(order))
        index = torch.tensor(order)
        # Saved with the state: sampling depends on it.
        self.register_buffer("order", index)
        self.register_buffer("back", torch.argsort(index))
        self.order: Tensor
        self.back: Tensor

    @classmethod
    def reversal(cls, dim: int) -> Permute:
        """Return the permutation that reverses the order."""
        return cls(range(dim - 1, -1, -1))

    @classmethod
    def random(cls, dim: int, seed: int = 0) -> Permute:
        """Return a random permutation that depends on ``dim`` and ``seed`` alone."""
        return cls(torch.randperm(dim, generator=stream(seed, "permutation")).tolist())

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        return y.index_select(-1, self.back), y.new_zeros(y.shape[:-1])

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        return y, ladj, score.expand_as(x).index_select(-1, self.order).detach()


def undo_permutations(flow: Flow) -> Permute | None:
    """Return the permutation that undoes those of a chain, or None if they cancel already.

    A guide puts it behind the flow, so that the whole starts at the identity and the model's
    coordinates keep their places.
    """
    order = _order_of(flow)
    if order == list(range(flow.dim)):
        return None
    return Permute(_inverted(order))


def _order_of(flow: Flow) -> list[int]:
    """Return where each coordinate comes from at the start: ``y[i] = x[order[i]]``."""
    order = list(range(flow.dim))
    for layer in flow.layers():
        if isinstance(layer.flow, Permute):
            moved: list[int] = layer.flow.order.tolist()
            order = [order[index] for index in (_inverted(moved) if layer.inverted else moved)]
    return order


def _inverted(order: list[int]) -> list[int]:
    back = [0] * len(order)
    for place, index in enumerate(order):
        back[index] = place
    return back
