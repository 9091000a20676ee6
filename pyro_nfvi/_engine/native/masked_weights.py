"""Lowering of masked weights: no product with the mask, and the gradient is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from pyro_nfvi._engine.native.sparse_weights import Masked, full_blocks, table
from pyro_nfvi._engine.native.values import Buffer, BufVal, LazyVal, Val, contiguous

if TYPE_CHECKING:
    from pyro_nfvi._engine.native.lowering import Lowering


#: The rule of a masked gradient: it registers itself.
GRADIENT: list[Callable[..., Any]] = []


class MaskedWeights:
    """What a lowering knows of the parameters that hold zeros where a mask leaves them out."""

    def __init__(self, masked: Sequence[Masked]) -> None:
        self._tables: dict[Any, BufVal | None] = {}
        self._by_buffer: dict[Buffer, Masked] = {}
        self._by_node = {one.gradient: one for one in masked if one.gradient is not None}
        self._plain = {node: one for one in masked for node in one.products}
        self._left_out = {
            node
            for one in masked
            if one.product is not None
            for node in (one.product, *one.between)
        }

    def take(self, low: Lowering, node: Node) -> bool:
        """Take a node that belongs to a masked parameter; return whether it is one."""
        if node in self._plain:  # weight * mask, where the weight holds zeros already
            one = self._plain[node]
            value = low.value(one.param)
            low.values[node] = value
            self._by_buffer[value.buffer] = one
            return True
        if node in self._left_out:  # until its product with the mask comes
            return True
        if node in self._by_node:
            low.node = node
            one = self._by_node[node]
            assert one.product is not None  # else there is no such node
            a, b = (low.value(x) for x in one.product.args)
            if one.turned:
                a, b = _turned(b), _turned(a)
            low.values[node] = GRADIENT[0](low, a, b, one, low.outputs[one.index])
            return True
        return False

    def blocks(self, low: Lowering, x: BufVal) -> tuple[BufVal | None, bool]:
        """Return the table of a masked matrix's blocks, if it is one, and whether it lies turned.

        The table is of the rows of the matrix as it is given.
        """
        one = self._by_buffer.get(x.buffer)
        if one is None or x.offset or len(x.shape) != 2:
            return None, False
        straight = x.shape == tuple(one.mask.shape) and x.strides == contiguous(x.shape)
        shape = x.shape[::-1]
        turned = shape == tuple(one.mask.shape) and x.strides[::-1] == contiguous(shape)
        if not straight and not turned:
            return None, False
        return self.table(low, one, turned=turned), turned

    def table(
        self, low: Lowering, one: Masked, *, turned: bool = False, full: bool = False
    ) -> BufVal | None:
        """Return the blocks of a mask or of its transpose; None where few are zero.

        ``full``: those without any zero.
        """
        key = one.index, turned, full
        if key not in self._tables:
            mask = one.mask.t() if turned else one.mask
            made = full_blocks(mask) if full else table(mask)
            self._tables[key] = None if made is None else low.datum(made)
        return self._tables[key]


def _turned(x: Val) -> Val:
    if isinstance(x, BufVal):
        return x.window(x.shape[::-1], x.strides[::-1])
    return LazyVal(x.shape[::-1], x.ctype, lambda i: x.load(i[::-1]))
