"""Masked weights of a graph: the nodes that belong to them, and tables of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.sparse_weights import Masked, full_blocks, table
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Val, contiguous

#: Name of an operation of ours under which the rule of a masked gradient is registered.
MASKED_GRADIENT = "masked_gradient"


class MaskedWeights:
    """Parameters that hold zeros where a mask leaves them out.

    Args:
        masked: The parameters.
        datum: Makes a tensor a value that the generated code reads.

    Attributes:
        products: Products of a parameter with its mask; the parameter itself stands for them.
        gradients: Nodes that are gradients of such parameters: a product, then the mask.
        left_out: Nodes inside of these gradients, which are not computed by themselves.
    """

    def __init__(self, masked: Sequence[Masked], datum: Callable[[Tensor], BufVal]) -> None:
        self._datum = datum
        self._tables: dict[Any, BufVal | None] = {}
        self._by_buffer: dict[Buffer, Masked] = {}
        self.gradients = {one.gradient: one for one in masked if one.gradient is not None}
        self.products = {node: one for one in masked for node in one.products}
        self.left_out: set[Node] = {
            node
            for one in masked
            if one.product is not None
            for node in (one.product, *one.between)
        }

    def note(self, value: BufVal, one: Masked) -> None:
        """Note that a value in memory is a masked parameter."""
        self._by_buffer[value.buffer] = one

    def blocks(self, x: BufVal) -> tuple[BufVal | None, bool]:
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
        return self.table(one, turned=turned), turned

    def table(self, one: Masked, *, turned: bool = False, full: bool = False) -> BufVal | None:
        """Return the blocks of a mask or of its transpose; None where few are zero.

        ``full``: those without any zero.
        """
        key = one.index, turned, full
        if key not in self._tables:
            mask = one.mask.t() if turned else one.mask
            made = full_blocks(mask) if full else table(mask)
            self._tables[key] = None if made is None else self._datum(made)
        return self._tables[key]


def transposed(x: Val) -> Val:
    """Return the transpose of a matrix, as a view or a formula."""
    if isinstance(x, BufVal):
        return x.window(x.shape[::-1], x.strides[::-1])
    return LazyVal(x.shape[::-1], x.ctype, lambda i: x.load(i[::-1]))
