"""Weights that a constant mask of zeros and ones multiplies: what it leaves out is skipped.

A parameter that enters a step only as ``weight * mask`` gets a gradient of exactly zero where the
mask is zero, and no optimiser without weight decay moves it there. The compiled loop keeps zeros in
these places of its own copy, so that the product with the mask need not be computed, and leaves out
whole blocks of them: in matrix products, in the gradient, in its norm and in the optimiser. The
live parameter keeps what it holds there.

Which blocks are left out is read from tables, not from the code, so that masks of one shape share
it. A mask of any shape will do; staircases, as in autoregressive nets, gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_nfvi._operators import aten

#: Size of a block: rows that one pass of a product takes together, columns that fill vectors.
ROWS, COLUMNS = 8, 16
#: Numbers from which the empty blocks of a mask are left out. Weights that fit into the processor's
#: cache are quicker whole: at 33,000 to 41,000 numbers a step took 1.05 to 1.25 times as long with
#: blocks left out, at 250,000 0.6 to 0.8 times.
_SPARSE_FROM = 100_000
#: Share of blocks that are not empty up to which leaving the others out is worth the table.
_MAX_FILLED = 0.85

_MUL = aten.mul.Tensor
_VIEWS = (aten.t.default, aten.detach.default, aten.alias.default)


@dataclass(frozen=True)
class Masked:
    """A parameter that enters as a product with a mask only.

    Attributes:
        index: Number of the parameter.
        param: Its placeholder in the graph.
        mask: Zeros and ones of its shape.
        products: The nodes ``weight * mask``.
        product: The matrix product behind its gradient; None if that is computed otherwise.
        gradient: The node ``product * mask``, the parameter's gradient.
        turned: Whether the gradient is the transpose of ``product``.
        between: The views from one to the other.
        outer: Whether the gradient is that of one particle, column times row, and is left so: its
            place holds the column and behind it the row.
    """

    index: int
    param: Node
    mask: Tensor
    products: tuple[Node, ...]
    product: Node | None = None
    gradient: Node | None = None
    turned: bool = False
    between: tuple[Node, ...] = ()
    outer: bool = False


def find_masked(
    graph: GraphModule, known: Mapping[Node, Tensor], count: int, *, outer: bool = False
) -> list[Masked]:
    """Find the masked ones among the first ``count`` inputs, gradients of which come first.

    ``outer``: gradients may be left as column and row.
    """
    nodes = list(graph.graph.nodes)
    holders = [node for node in nodes if node.op == "placeholder"][:count]
    results = nodes[-1].args[0]
    found = []
    for k, param in enumerate(holders):
        masks = [_factor(user, param, known) for user in param.users]
        if not masks or any(mask is None or mask is not masks[0] for mask in masks):
            continue
        values = known[masks[0]]  # type: ignore[index]
        plain = values.dim() == 2 and values.shape == param.meta["val"].shape
        if not plain or not values.is_floating_point():
            continue
        if not bool(((values == 0) | (values == 1)).all()) or bool((values == 1).all()):
            continue
        one = Masked(k, param, values.contiguous(), tuple(param.users))
        one = _with_gradient(one, results[k], masks[0], known)
        if outer and one.product is not None and table(one.mask) is not None:
            left: Node = one.product.args[0]  # type: ignore[assignment]
            one = replace(one, outer=left.meta["val"].shape[1] == 1)
        found.append(one)
    return found


def _factor(user: Node, param: Node, known: Mapping[Node, Tensor]) -> Node | None:
    """Return the constant that a node multiplies a parameter by, if that is what it does."""
    if user.op != "call_function" or user.target is not _MUL or user.kwargs:
        return None
    for one, other in (user.args, user.args[::-1]):
        if one is param and isinstance(other, Node) and other in known:
            return other
    return None


def _with_gradient(
    one: Masked, result: Node, mask: Node | None, known: Mapping[Node, Tensor]
) -> Masked:
    """Look for a matrix product behind the gradient, times the mask."""
    if not isinstance(result, Node) or result.target is not _MUL or len(result.users) != 1:
        return one
    source = next((x for x in result.args if isinstance(x, Node) and x not in known), None)
    if mask not in result.args or source is None:
        return one
    turned, between = False, []
    while source.target in _VIEWS and len(source.users) == 1:
        between.append(source)
        turned ^= source.target is _VIEWS[0]
        source = source.args[0]  # type: ignore[assignment]
    if source.target is not aten.mm.default or len(source.users) != 1:
        return one
    return replace(one, product=source, gradient=result, turned=turned, between=tuple(between))


def table(mask: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor | None:
    """Return, for each strip of rows, the runs of columns that hold a one; None where few are left.

    The table holds where the runs of each strip begin (and, at the end, where the last ones end),
    then begin and end of each run: int32.
    """
    if mask.numel() < _SPARSE_FROM:
        return None
    blocks = _blocks(mask, rows, columns, pad=False).any(3).any(1)
    if float(blocks.float().mean()) > _MAX_FILLED:
        return None
    return _as_table(blocks, columns, mask.shape[1])


def full_blocks(mask: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Return the runs without a zero in any row of a strip, in the form of :func:`table`."""
    blocks = _blocks(mask, rows, columns, pad=True).all(3).all(1)
    return _as_table(blocks, columns, mask.shape[1])


def _blocks(mask: Tensor, rows: int, columns: int, *, pad: bool) -> Tensor:
    count, width = mask.shape
    tall, wide = -(-count // rows), -(-width // columns)
    padded = torch.full((tall * rows, wide * columns), pad)
    padded[:count, :width] = mask != 0
    return padded.view(tall, rows, wide, columns)


def _as_table(blocks: Tensor, columns: int, width: int) -> Tensor:
    begins, runs = [0], []
    for strip in blocks.tolist():
        for begin, end in _runs(strip):
            runs.append((begin * columns, min(end * columns, width)))
        begins.append(len(runs))
    flat = begins + [end for run in runs for end in run]
    return torch.tensor(flat, dtype=torch.int32)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Begin and end of each stretch of true ones."""
    found = []
    begin = None
    for k, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = k
        elif not flag and begin is not None:
            found.append((begin, k))
            begin = None
    return found


def ranges(mask: Tensor, unit: int) -> list[tuple[int, int]]:
    """Stretches of a flattened mask that hold its ones, in units of so many numbers.

    One stretch where the holes are too small to be worth stepping over.
    """
    size = -(-mask.numel() // unit)
    if table(mask) is None:
        return [(0, size * unit)]
    padded = torch.zeros(size * unit, dtype=torch.bool)
    padded[: mask.numel()] = mask.reshape(-1) != 0
    merged: list[tuple[int, int]] = []
    for begin, end in _runs(padded.view(size, unit).any(1).tolist()):
        if merged and begin - merged[-1][1] < 2:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return [(begin * unit, end * unit) for begin, end in merged]
