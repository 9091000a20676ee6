"""Rules of the operations that only look at their operand in another way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from pyro_nfvi._engine.native.expressions import RECOMPUTE_COST, Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, Rule, lowers
from pyro_nfvi._engine.native.pointwise import lazy
from pyro_nfvi._engine.native.values import (
    BufVal,
    LazyVal,
    Shape,
    Val,
    contiguous,
    remembered,
    view_strides,
)
from pyro_nfvi._operators import aten, prims


def is_view(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule whose result is its operand seen in another way."""

    def register(rule: Rule) -> Rule:
        rule.view = True  # type: ignore[attr-defined]
        return lowers(*targets)(rule)

    return register


def _axes(low: Lowering, x: Val, source: Sequence[int | None], shape: Shape | None = None) -> Val:
    """Result whose axis d is the operand's axis ``source[d]``; None: repeated."""
    shape = low.shape if shape is None else shape
    if isinstance(x, BufVal):
        strides = tuple(0 if s is None or x.shape[s] == 1 else x.strides[s] for s in source)
        return x.window(shape, strides)

    def load(index: tuple[Ix, ...]) -> Expr:
        inner = [Ix()] * len(x.shape)
        for i, s in zip(index, source):
            if s is not None and x.shape[s] != 1:
                inner[s] = i
        return x.load(tuple(inner))

    return LazyVal(shape, x.ctype, load)


@is_view(aten.detach.default, aten.alias.default)
def _detach(low: Lowering, x: Val) -> Val:
    return x


@is_view(operator.getitem)
def _getitem(low: Lowering, x: Sequence[Val], k: int) -> Val:
    return x[k]


@is_view(aten.expand.default)
def _expand(low: Lowering, x: Val, size: Sequence[int], **_: Any) -> Val:
    grows = prod(low.shape) > prod(x.shape)
    if grows and isinstance(x, LazyVal) and x.probe().cost > RECOMPUTE_COST:
        x = low.realize(x)  # once, not once for each copy
    lead = len(low.shape) - len(x.shape)
    source = [
        None if d < lead or x.shape[d - lead] == 1 else d - lead for d in range(len(low.shape))
    ]
    return _axes(low, x, source)


@is_view(aten.unsqueeze.default)
def _unsqueeze(low: Lowering, x: Val, dim: int) -> Val:
    source: list[int | None] = list(range(len(x.shape)))
    source.insert(dim % (len(x.shape) + 1), None)
    return _axes(low, x, source)


@is_view(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def _squeeze(low: Lowering, x: Val, dim: Any = None) -> Val:
    rank = max(1, len(x.shape))
    every = range(len(x.shape))
    dims = every if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims}
    kept = [d for d in every if not (d in gone and x.shape[d] == 1)]
    return _axes(low, x, kept, tuple(x.shape[d] for d in kept))


@is_view(aten.permute.default)
def _permute(low: Lowering, x: Val, dims: Sequence[int]) -> Val:
    return _axes(low, x, [d % len(x.shape) for d in dims])


@is_view(aten.t.default)
def _t(low: Lowering, x: Val) -> Val:
    return _axes(low, x, list(reversed(range(len(x.shape)))))


@is_view(aten.transpose.int)
def _transpose(low: Lowering, x: Val, a: int, b: int) -> Val:
    source: list[int | None] = list(range(len(x.shape)))
    if source:
        source[a], source[b] = source[b], source[a]
    return _axes(low, x, source)


@is_view(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(low: Lowering, x: Val, *_: Any) -> Val:
    return reshape(low, x, low.shape)


def reshape(low: Lowering, x: Val, shape: Shape) -> Val:
    """Return the same elements, in order, in another shape."""
    if isinstance(x, LazyVal):
        made = _split(x, shape)
        if made is not None:
            return made
        x = low.realize(x)
    strides = view_strides(x.shape, x.strides, shape)
    if strides is None:
        x = low.dense(BufVal(x.buffer, x.shape, x.strides, x.offset, low.pool))
        strides = contiguous(shape)
    return x.window(shape, strides)


def _split(x: LazyVal, shape: Shape) -> LazyVal | None:
    """Reshape a formula whose axes are only split up, or None."""
    parts: list[tuple[int, list[int]]] = []  # axis of x, axes of the result
    axes = [d for d, n in enumerate(x.shape) if n != 1]
    d = 0
    for axis in axes:
        total, mine = 1, []
        while total < x.shape[axis] and d < len(shape):
            if shape[d] != 1:
                mine.append(d)
            total *= shape[d]
            d += 1
        if total != x.shape[axis]:
            return None
        parts.append((axis, mine))

    def load(index: tuple[Ix, ...]) -> Expr:
        inner = [Ix()] * len(x.shape)
        for axis, mine in parts:
            place = Ix()
            for e in mine:
                place = place * shape[e] + index[e]
            inner[axis] = place
        return x.load(tuple(inner))

    return LazyVal(shape, x.ctype, load)


def _moved(low: Lowering, x: Val, shape: Shape, at: Callable[..., tuple[Ix, ...]]) -> Val:
    """Result whose element is the operand's at a mapped index."""
    del low
    return LazyVal(shape, x.ctype, remembered(lambda index: x.load(at(index))))


@is_view(aten.select.int)
def _select(low: Lowering, x: Val, dim: int, k: int) -> Val:
    dim %= len(x.shape)
    k %= x.shape[dim]
    if isinstance(x, BufVal):
        strides = x.strides[:dim] + x.strides[dim + 1 :]
        return x.window(low.shape, strides, k * x.strides[dim])
    return _moved(low, x, low.shape, lambda i: (*i[:dim], Ix(const=k), *i[dim:]))


def slice_of(low: Lowering, x: Val, dim: int, start: int, step: int, shape: Shape) -> Val:
    """Return every ``step``-th part of a value along an axis."""
    if isinstance(x, BufVal):
        strides = tuple(s * step if d == dim else s for d, s in enumerate(x.strides))
        return x.window(shape, strides, start * x.strides[dim])
    return _moved(low, x, shape, lambda i: (*i[:dim], i[dim] * step + start, *i[dim + 1 :]))


@is_view(aten.slice.Tensor)
def _slice(
    low: Lowering, x: Val, dim: int = 0, start: int | None = None, end: Any = None, step: int = 1
) -> Val:
    del end
    dim %= len(x.shape)
    n = x.shape[dim]
    begin = 0 if start is None else start + n if start < 0 else start
    return slice_of(low, x, dim, min(max(begin, 0), n), step, low.shape)


@is_view(aten.narrow.default)
def _narrow(low: Lowering, x: Val, dim: int, start: int, length: int) -> Val:
    return slice_of(low, x, dim % len(x.shape), start, 1, low.shape)


def _parts(low: Lowering, x: Val, dim: int, sizes: Sequence[int]) -> list[Val]:
    if isinstance(x, LazyVal) and x.probe().cost > RECOMPUTE_COST:
        x = low.realize(x)
    begin, made = 0, []
    for n in sizes:
        shape = (*x.shape[:dim], n, *x.shape[dim + 1 :])
        made.append(slice_of(low, x, dim, begin, 1, shape))
        begin += n
    return made


@is_view(aten.split_with_sizes.default)
def _split_with_sizes(low: Lowering, x: Val, sizes: Sequence[int], dim: int = 0) -> list[Val]:
    return _parts(low, x, dim % len(x.shape), sizes)


@is_view(aten.split.Tensor)
def _split_equal(low: Lowering, x: Val, size: int, dim: int = 0) -> list[Val]:
    n = x.shape[dim % len(x.shape)]
    sizes = [min(size, n - k) for k in range(0, n, size)]
    return _parts(low, x, dim % len(x.shape), sizes)


@is_view(aten.unbind.int)
def _unbind(low: Lowering, x: Val, dim: int = 0) -> list[Val]:
    dim %= len(x.shape)
    parts = _parts(low, x, dim, [1] * x.shape[dim])
    shape = (*x.shape[:dim], *x.shape[dim + 1 :])
    made: list[Val] = []
    for part in parts:
        if isinstance(part, BufVal):
            made.append(part.window(shape, part.strides[:dim] + part.strides[dim + 1 :]))
        else:
            made.append(_moved(low, part, shape, lambda i: (*i[:dim], Ix(), *i[dim:])))
    return made


@is_view(aten.diagonal.default)
def _diagonal(low: Lowering, x: Val, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Val:
    rank = len(x.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    rows, columns = max(-offset, 0), max(offset, 0)
    rest = [d for d in range(rank) if d not in (dim1, dim2)]

    def at(index: tuple[Ix, ...]) -> tuple[Ix, ...]:
        inner = [Ix()] * rank
        for i, d in zip(index, rest):
            inner[d] = i
        inner[dim1], inner[dim2] = index[-1] + rows, index[-1] + columns
        return tuple(inner)

    if isinstance(x, BufVal):
        strides = (*(x.strides[d] for d in rest), x.strides[dim1] + x.strides[dim2])
        return x.window(low.shape, strides, rows * x.strides[dim1] + columns * x.strides[dim2])
    return _moved(low, x, low.shape, at)


@is_view(aten.unfold.default)
def _unfold(low: Lowering, x: Val, dim: int, size: int, step: int) -> Val:
    del size
    dim %= max(1, len(x.shape))
    if isinstance(x, BufVal):
        strides = tuple(s * step if d == dim else s for d, s in enumerate(x.strides))
        return x.window(low.shape, (*strides, x.strides[dim]))
    return _moved(low, x, low.shape, lambda i: (*i[:dim], i[dim] * step + i[-1], *i[dim + 1 : -1]))


@lowers(aten.flip.default, prims.rev.default)
def _flip(low: Lowering, x: Val, dims: Sequence[int]) -> Val:
    turned = {d % len(x.shape) for d in dims}

    def at(index: tuple[Ix, ...]) -> tuple[Ix, ...]:
        return tuple(i * -1 + (x.shape[d] - 1) if d in turned else i for d, i in enumerate(index))

    return _moved(low, x, low.shape, at)


@lowers(aten.repeat.default)
def _repeat(low: Lowering, x: Val, repeats: Sequence[int]) -> Val:
    lead = len(repeats) - len(x.shape)
    blocks: list[int] = []
    for d, times in enumerate(repeats):
        blocks += [times, 1 if d < lead else x.shape[d - lead]]
    strides: list[int] = []
    source = low.realize(x)
    for d in range(len(repeats)):
        strides += [0, 0 if d < lead else source.strides[d - lead]]
    return reshape(low, source.window(tuple(blocks), tuple(strides)), low.shape)


def _triangle(sign: str) -> Rule:
    def rule(low: Lowering, x: Val, diagonal: int = 0) -> LazyVal:
        pool = low.pool

        def make(index: tuple[Ix, ...]) -> Expr:
            rows, columns = pool.index(index[-2] + diagonal), pool.index(index[-1])
            keep = pool.op(f"({{0}}{sign}{{1}})", columns, rows, kind="bool")
            return pool.where(keep, x.load(index), pool.lit(0, x.ctype))

        return lazy(low, make)

    return rule


lowers(aten.tril.default)(_triangle("<="))
lowers(aten.triu.default)(_triangle(">="))
