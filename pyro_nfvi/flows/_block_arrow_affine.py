"""An affine map whose matrix is a block arrow."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow


@final
class BlockArrowAffine(Flow):
    r"""A shift and a triangular matrix of a block arrow, with given numbers.

    .. math:: y = m + T x, \qquad
        (Tx)_b = \sum_p W_{bp} (Tx)_p + L_b x_b

    Each row of a block is an affine map of its own noise and of its rows in the parents' blocks
    (:class:`~pyro_nfvi.flows._block_arrow.ArrowFactor`). It trains nothing: its numbers are
    buffers, saved with its state.

    Args:
        loc: Shift m, ``(D,)``.
        factor: T.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(sum of R d (d + d_p)) per row of x, both ways: linear in the rows of plates.

    Raises:
        ShapeError: A point of another size or dtype.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows._block_arrow import ArrowFactor, BlockArrow
        >>> tree = BlockArrow.of(torch.tensor([0]), torch.tensor([[1], [2]]))
        >>> factor = ArrowFactor.diagonal(tree, torch.tensor([1.0, 2.0, 3.0]))
        >>> BlockArrowAffine(torch.ones(3), factor)(torch.ones(3))[0]
        tensor([2., 3., 4.])
    """

    def __init__(self, loc: Tensor, factor: ArrowFactor) -> None:
        super().__init__(len(loc))
        self.register_buffer("loc", loc)
        self.loc: Tensor
        self._parents: list[list[int]] = []
        for place, block in enumerate(factor.arrow.blocks):
            self.register_buffer(f"positions_{place}", block.positions)
            self.register_buffer(f"tril_{place}", factor.trils[place])
            self._parents.append([index for index, _ in block.parents])
            for (index, rows), weight in zip(block.parents, factor.weights[place], strict=True):
                self.register_buffer(f"rows_{place}_{index}", rows)
                self.register_buffer(f"weights_{place}_{index}", weight)
        self.register_buffer("back", factor.arrow.back, persistent=False)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], like: Tensor) -> BlockArrowAffine:
        """Make a map of the tensors that its ``state_dict`` has.

        Raises:
            OptionError: They are no block arrow.
            KeyError: One is missing.
        """
        blocks, trils, weights = [], [], []
        for place in range(sum(name.startswith("positions_") for name in state)):
            mine = sorted(
                int(name.rpartition("_")[2]) for name in state if name.startswith(f"rows_{place}_")
            )
            parents = tuple((index, state[f"rows_{place}_{index}"]) for index in mine)
            blocks.append(ArrowBlock(state[f"positions_{place}"], parents))
            trils.append(state[f"tril_{place}"].to(like))
            weights.append(tuple(state[f"weights_{place}_{index}"].to(like) for index in mine))
        arrow = BlockArrow.tree(blocks)
        expected = ArrowFactor.diagonal(arrow, like.new_ones(arrow.dim))
        pairs = [*zip(trils, expected.trils, strict=True)]
        for mine_, theirs in zip(weights, expected.weights, strict=True):
            pairs += zip(mine_, theirs, strict=True)
        if any(one.shape != other.shape for one, other in pairs) or arrow.dim != len(like):
            raise ShapeError(
                f"A block arrow of {arrow.dim} coordinates does not fit a vector of {len(like)}, "
                "or its numbers do not fit its blocks. Save the fit again."
            )
        return cls(state["loc"].to(like), ArrowFactor(arrow, tuple(trils), tuple(weights)))

    @property
    def factor(self) -> ArrowFactor:
        """T, of the buffers as they are."""
        blocks, trils, weights = [], [], []
        for place, parents in enumerate(self._parents):
            get = self._buffers.__getitem__
            rows = tuple((index, _tensor(get(f"rows_{place}_{index}"))) for index in parents)
            blocks.append(ArrowBlock(_tensor(get(f"positions_{place}")), rows))
            trils.append(_tensor(get(f"tril_{place}")))
            weights.append(tuple(_tensor(get(f"weights_{place}_{index}")) for index in parents))
        return ArrowFactor(
            BlockArrow(tuple(blocks), self._buffers["back"]), tuple(trils), tuple(weights)
        )

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super().enter(x, context)
        if x.dtype != self.loc.dtype:
            raise ShapeError(
                f"BlockArrowAffine(dim={self.dim}) has numbers of {self.loc.dtype}; got a point "
                f"of {x.dtype}. Convert the point with .to(dtype), or the flow with .double()."
            )
        return x, context

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        factor = self.factor
        return self.loc + factor.push(x), factor.log_det.expand(x.shape[:-1])

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        factor = self.factor
        return factor.solve(y - self.loc), -factor.log_det.expand(y.shape[:-1])

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        with torch.no_grad():
            return y, ladj, self.factor.push_score(score.expand_as(y))


def _tensor(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer
