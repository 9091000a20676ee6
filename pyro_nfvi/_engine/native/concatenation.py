"""Rules of the operations that put parts together, or one part into something larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.values import BufVal, Val
from pyro_nfvi._engine.native.views import reshape, slice_of
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten


def _store_part(low: Lowering, target: BufVal, part: Val, dim: int, begin: int) -> None:
    window = target.window(part.shape, target.strides, begin * target.strides[dim])
    low.store(window, lambda index: low.pool.cast(part.load(index), target.ctype), partial=True)


@lowers(aten.cat.default)
def _cat(low: Lowering, parts: Sequence[Val], dim: int = 0) -> BufVal:
    target = low.result()
    dim %= len(target.shape)
    begin = 0
    for part in parts:
        if part.shape == (0,) and len(target.shape) != 1:
            continue
        _store_part(low, target, part, dim, begin)
        begin += part.shape[dim]
    return target


@lowers(aten.stack.default)
def _stack(low: Lowering, parts: Sequence[Val], dim: int = 0) -> BufVal:
    target = low.result()
    dim %= len(target.shape)
    for k, part in enumerate(parts):
        shape = target.shape[:dim] + target.shape[dim + 1 :]
        strides = target.strides[:dim] + target.strides[dim + 1 :]
        window = target.window(shape, strides, k * target.strides[dim])
        low.store(window, part.load, partial=True)
    return target


def _filled(low: Lowering, value: float = 0) -> BufVal:
    target = low.result()
    low.store(target, lambda index: low.pool.lit(value, target.ctype))
    return target


@lowers(aten.constant_pad_nd.default)
def _pad(low: Lowering, x: Val, pad: Sequence[int], value: float = 0) -> BufVal:
    source = low.realize(x)
    target = _filled(low, value)
    window, shape = target, list(x.shape)
    for k in range(len(pad) // 2):
        d = len(x.shape) - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        source = source.window(source.shape, source.strides, max(-before, 0) * source.strides[d])
        shape[d] += min(before, 0) + min(after, 0)
        window = window.window(window.shape, window.strides, max(before, 0) * target.strides[d])
    source = source.window(tuple(shape), source.strides)
    low.store(window.window(tuple(shape), target.strides), source.load, partial=True)
    return target


@lowers(aten.slice_backward.default)
def _slice_backward(
    low: Lowering, grad: Val, size: Sequence[int], dim: int, start: int, end: int, step: int
) -> BufVal:
    del end
    target = _filled(low)
    dim %= len(size)
    n = size[dim]
    start = min(max(start + n if start < 0 else start, 0), n)
    strides = tuple(s * step if d == dim else s for d, s in enumerate(target.strides))
    low.store(
        target.window(grad.shape, strides, start * target.strides[dim]), grad.load, partial=True
    )
    return target


@lowers(aten.select_backward.default)
def _select_backward(low: Lowering, grad: Val, size: Sequence[int], dim: int, k: int) -> BufVal:
    target = _filled(low)
    dim %= len(size)
    strides = target.strides[:dim] + target.strides[dim + 1 :]
    window = target.window(grad.shape, strides, (k % size[dim]) * target.strides[dim])
    low.store(window, grad.load, partial=True)
    return target


def _scatter_into(low: Lowering, x: Val, window: Callable[[BufVal], BufVal], part: Val) -> BufVal:
    target = low.result()
    low.store(target, x.load)
    low.store(window(target), part.load, partial=True)
    return target


@lowers(aten.select_scatter.default)
def _select_scatter(low: Lowering, x: Val, part: Val, dim: int, k: int) -> BufVal:
    dim %= len(x.shape)

    def window(t: BufVal) -> BufVal:
        strides = t.strides[:dim] + t.strides[dim + 1 :]
        return t.window(part.shape, strides, (k % x.shape[dim]) * t.strides[dim])

    return _scatter_into(low, x, window, part)


@lowers(aten.slice_scatter.default)
def _slice_scatter(
    low: Lowering,
    x: Val,
    part: Val,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> BufVal:
    del end
    dim %= len(x.shape)
    n = x.shape[dim]
    begin = 0 if start is None else min(max(start + n if start < 0 else start, 0), n)

    def window(t: BufVal) -> BufVal:
        strides = tuple(s * step if d == dim else s for d, s in enumerate(t.strides))
        return t.window(part.shape, strides, begin * t.strides[dim])

    return _scatter_into(low, x, window, part)


@lowers(aten.diagonal_scatter.default)
def _diagonal_scatter(
    low: Lowering, x: Val, part: Val, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> BufVal:
    rank = len(x.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    rest = [d for d in range(rank) if d not in (dim1, dim2)]

    def window(t: BufVal) -> BufVal:
        begin = max(-offset, 0) * t.strides[dim1] + max(offset, 0) * t.strides[dim2]
        strides = (*(t.strides[d] for d in rest), t.strides[dim1] + t.strides[dim2])
        return t.window(part.shape, strides, begin)

    return _scatter_into(low, x, window, part)


@lowers(aten.diagonal_backward.default)
def _diagonal_backward(
    low: Lowering, grad: Val, size: Sequence[int], offset: int, dim1: int, dim2: int
) -> BufVal:
    target = _filled(low)
    rank = len(size)
    dim1, dim2 = dim1 % rank, dim2 % rank
    rest = [d for d in range(rank) if d not in (dim1, dim2)]
    begin = max(-offset, 0) * target.strides[dim1] + max(offset, 0) * target.strides[dim2]
    strides = (*(target.strides[d] for d in rest), target.strides[dim1] + target.strides[dim2])
    low.store(target.window(grad.shape, strides, begin), grad.load, partial=True)
    return target


@lowers(aten.diag_embed.default)
def _diag_embed(low: Lowering, x: Val, offset: int = 0, dim1: int = -2, dim2: int = -1) -> BufVal:
    return _diagonal_backward(low, x, low.shape, offset, dim1, dim2)


@lowers(aten.roll.default)
def _roll(low: Lowering, x: Val, shifts: Sequence[int], dims: Sequence[int] = ()) -> Val:
    if len(dims) != 1:
        raise Unsupported("a roll over several axes or over none")
    d = dims[0] % len(x.shape)
    n = x.shape[d]
    k = shifts[0] % n
    target = low.result()
    source = low.realize(x)
    for begin, end, to in ((0, n - k, k), (n - k, n, 0)):
        if begin < end:
            part = slice_of(
                low, source, d, begin, 1, (*x.shape[:d], end - begin, *x.shape[d + 1 :])
            )
            _store_part(low, target, part, d, to)
    return target


@lowers(aten.block_diag.default)
def _block_diag(low: Lowering, parts: Sequence[Val]) -> BufVal:
    target = _filled(low)
    row = column = 0
    for part in parts:
        rows, columns = (1, *part.shape)[-2:] if part.shape else (1, 1)
        window = target.window(
            (rows, columns), target.strides, row * target.strides[0] + column * target.strides[1]
        )
        wide = reshape(low, part, (rows, columns))
        low.store(window, wide.load, partial=True)
        row, column = row + rows, column + columns
    return target
