"""Rules of gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from pyro.distributions.util import broadcast_shape

from pyro_nfvi._engine.native.expressions import Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Shape, Val, remembered
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten


def _place(low: Lowering, index: Val, at: tuple[Ix, ...], n: int) -> Ix:
    """Return an element of an index tensor as an index; negative ones count from the end."""
    value = low.pool.cast(index.load(at), "int64_t")
    if value.op == "ix":  # an arange
        found: Ix = value.args[0]
        return found
    if value.literal is not None:
        return Ix(const=int(value.literal) % n)
    template = f"m_wrap({{0}},(int64_t){n})"
    return Ix(((low.pool.op(template, value, kind="int64_t"), 1),))


def _advanced(
    low: Lowering, shape: Shape, indices: Sequence[Val | None]
) -> tuple[Shape, list[int], int]:
    """Broadcast the index tensors; return their shape, the indexed axes, and where they go."""
    if any(i is not None and i.ctype in ("bool", "uint8_t") for i in indices):
        raise Unsupported("a mask as an index, whose result has no fixed size")
    axes = [d for d, i in enumerate(indices) if i is not None]
    batch = tuple(broadcast_shape(*(i.shape for i in indices if i is not None)))
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    return batch, axes, axes[0] if together else 0


def _source_index(
    low: Lowering, shape: Shape, indices: Sequence[Val | None], index: tuple[Ix, ...]
) -> tuple[Ix, ...]:
    """Map an index of ``x[indices]`` to one of x."""
    batch, axes, lead = _advanced(low, shape, indices)
    inner = index[lead : lead + len(batch)]
    rest = iter(index[:lead] + index[lead + len(batch) :])
    made = []
    for d, n in enumerate(shape):
        one = indices[d] if d < len(indices) else None
        if one is None:
            made.append(next(rest))
        else:
            made.append(_place(low, one, low.index(one, inner), n))
    del axes
    return tuple(made)


def _solid(low: Lowering, indices: Sequence[Val | None]) -> list[Val | None]:
    return [low.realize(i) if isinstance(i, LazyVal) and i.probe().cost > 2 else i for i in indices]


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(low: Lowering, x: Val, indices: Sequence[Val | None]) -> LazyVal:
    indices = _solid(low, indices)
    _advanced(low, x.shape, indices)
    source = low.realize(x)
    return LazyVal(
        low.shape,
        x.ctype,
        remembered(lambda i: source.load(_source_index(low, source.shape, indices, i))),
    )


@lowers(aten.index_select.default)
def _index_select(low: Lowering, x: Val, dim: int, index: Val) -> LazyVal:
    dim %= len(x.shape)
    return _index(low, x, [None] * dim + [index])


@lowers(aten.embedding.default)
def _embedding(low: Lowering, weight: Val, index: Val, *_: Any) -> LazyVal:
    return _index(low, weight, [index])


@lowers(aten.gather.default)
def _gather(low: Lowering, x: Val, dim: int, index: Val, **_: Any) -> LazyVal:
    source, places = low.realize(x), _solid(low, [index])[0]
    if not x.shape or places is None:
        return LazyVal(low.shape, x.ctype, lambda i: source.load(()))
    dim %= len(x.shape)

    def load(index_: tuple[Ix, ...]) -> Expr:
        place = _place(low, places, index_, x.shape[dim])
        inner = (*index_[:dim], place, *index_[dim + 1 :])
        return source.load(inner)

    return LazyVal(low.shape, x.ctype, remembered(load))


def _scatter_loop(
    low: Lowering, target: BufVal, shape: Shape, value: Val, at: Any, *, add: bool
) -> None:
    """Emit ``target[at(index)] (+)= value[index]`` one after the other."""
    if value.shape == shape:
        values = low.realize(value)
    else:
        source = value
        values = low.realize(
            LazyVal(shape, value.ctype, lambda i: source.load(low.index(source, i)))
        )
    index = tuple(Ix.var(f"j{d}") if n != 1 else Ix() for d, n in enumerate(shape))
    place = target.at(at(index))
    read: list[BufVal] = [values]
    text = _written(place, read)
    where = _written(values.at(index), [])
    # Axes that enter as they are hit different places each: they may run in vectors, innermost. One
    # inside an index too does if the index moves by whole lengths of the axis.
    apart = [d for d, n in enumerate(shape) if n != 1 and place.coefficient(f"j{d}")]
    inside = [(step, _variables(a)) for a, step in place.terms if not isinstance(a, str)]

    def misses(d: int) -> bool:
        length = place.coefficient(f"j{d}") * shape[d]
        return all(step % length == 0 for step, names in inside if f"j{d}" in names)

    apart = [d for d in apart if misses(d)]
    best = min(apart, key=lambda d: place.coefficient(f"j{d}"), default=None)
    order = [d for d, n in enumerate(shape) if n != 1 and d != best]
    order += [] if best is None else [best]
    loops = "".join(
        ("\n#pragma omp simd\n" if d == best else "")
        + f"for(int64_t j{d}=0;j{d}<{shape[d]};j{d}++) "
        for d in order
    )
    sign = "+=" if add else "="
    low.call(
        f"{loops}{target.buffer.name}[{text}]{sign}{values.buffer.name}[{where}];",
        [*read, target],
        [target],
    )


def _variables(one: Expr) -> set[str]:
    """Return the loop variables inside an expression."""
    found: set[str] = set()
    stack = [one]
    while stack:
        e = stack.pop()
        if e.op in ("load", "ix"):
            found |= {a for a, _ in e.args[-1].terms if isinstance(a, str)}
        stack.extend(e.inputs)
    return found


def _written(place: Ix, read: list[BufVal]) -> str:
    """Return an index in C++, outside of the loops that are generated from statements."""
    parts = [str(place.const)]
    for atom, k in place.terms:
        parts.append(f"({_text(atom, read)})*{k}")
    return "+".join(parts)


def _text(one: Any, read: list[BufVal]) -> str:
    if isinstance(one, str):
        return one
    if one.op == "lit":
        return str(int(one.literal))
    if one.op == "ix":
        return _written(one.args[0], read)
    if one.op == "load":
        buffer, index = one.args
        read.append(BufVal(buffer, (), ()))
        return f"{buffer.name}[{_written(index, read)}]"
    made: str = one.op.format(*(_text(arg, read) for arg in one.args))
    return made


def _start(low: Lowering, x: Val) -> BufVal:
    target = low.fresh(x.shape, low.ctype)
    low.store(target, x.load)
    return target


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    low: Lowering,
    x: Val,
    indices: Sequence[Val | None],
    values: Val,
    accumulate: bool = False,  # noqa: FBT001, FBT002
) -> BufVal:
    if any(i is not None and i.ctype == "bool" for i in indices):
        return _masked_put(low, x, indices, values, accumulate=accumulate)
    indices = [None if i is None else low.realize(i) for i in indices]
    target = _start(low, x)
    batch, axes, lead = _advanced(low, x.shape, indices)
    rest = tuple(n for d, n in enumerate(x.shape) if d not in axes)
    shape = (*rest[:lead], *batch, *rest[lead:])
    _scatter_loop(
        low,
        target,
        shape,
        values,
        lambda i: _source_index(low, x.shape, indices, i),
        add=accumulate,
    )
    return target


def _masked_put(
    low: Lowering, x: Val, indices: Sequence[Val | None], values: Val, *, accumulate: bool
) -> Any:
    mask = indices[0]
    if len(indices) != 1 or mask is None or prod(values.shape) != 1 or accumulate:
        raise Unsupported("values put at a mask")
    test, pool = mask, low.pool

    def load(index: tuple[Ix, ...]) -> Expr:
        value = low.scalar(values, (), low.ctype)
        return pool.where(test.load(index[: len(test.shape)]), value, x.load(index))

    return LazyVal(low.shape, low.ctype, load)


@lowers(aten.index_add.default)
def _index_add(
    low: Lowering, x: Val, dim: int, index: Val, source: Val, *, alpha: Any = 1
) -> BufVal:
    if alpha != 1:
        raise Unsupported("a factor of the source")
    dim %= len(x.shape)
    places, target = low.realize(index), _start(low, x)

    def at(i: tuple[Ix, ...]) -> tuple[Ix, ...]:
        place = _place(low, places, low.index(places, (i[dim],)), x.shape[dim])
        return (*i[:dim], place, *i[dim + 1 :])

    _scatter_loop(low, target, source.shape, source, at, add=True)
    return target


def _scatter(low: Lowering, x: Val, dim: int, index: Val, source: Any, *, add: bool) -> BufVal:
    dim %= max(1, len(x.shape))
    places, target = low.realize(index), _start(low, x)
    shape = places.shape
    if not isinstance(source, BufVal | LazyVal):
        literal = low.pool.lit(source, target.ctype)
        source = LazyVal(shape, target.ctype, lambda i: literal)
    elif source.shape != shape:
        given = source
        source = LazyVal(shape, given.ctype, given.load)

    def at(i: tuple[Ix, ...]) -> tuple[Ix, ...]:
        return (*i[:dim], _place(low, places, i, x.shape[dim]), *i[dim + 1 :])

    _scatter_loop(low, target, shape, source, at, add=add)
    return target


@lowers(aten.scatter_add.default)
def _scatter_add(low: Lowering, x: Val, dim: int, index: Val, source: Val) -> BufVal:
    return _scatter(low, x, dim, index, source, add=True)


@lowers(aten.scatter.src, aten.scatter.value)
def _scatter_plain(low: Lowering, x: Val, dim: int, index: Val, source: Any) -> BufVal:
    return _scatter(low, x, dim, index, source, add=False)


@lowers(aten.gather_backward.default)
def _gather_backward(low: Lowering, grad: Val, x: Val, dim: int, index: Val, *_: Any) -> BufVal:
    zeros = LazyVal(x.shape, low.ctype, lambda i: low.pool.lit(0, low.ctype))
    return _scatter(low, zeros, dim, index, grad, add=True)


@lowers(aten.embedding_dense_backward.default)
def _embedding_backward(
    low: Lowering, grad: Val, index: Val, count: int, padding: int, *_: Any
) -> BufVal:
    if padding >= 0:
        raise Unsupported("an embedding with padding")
    zeros = LazyVal(low.shape, low.ctype, lambda i: low.pool.lit(0, low.ctype))
    target, places = _start(low, zeros), low.realize(index)

    def at(i: tuple[Ix, ...]) -> tuple[Ix, ...]:
        return (_place(low, places, i[:-1], count), i[-1])

    _scatter_loop(low, target, grad.shape, grad, at, add=True)
    return target
