"""Rules of tensors that come from nothing."""

from __future__ import annotations

from typing import Any

from pyro_nfvi._engine.native.expressions import Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.pointwise import lazy
from pyro_nfvi._engine.native.values import BufVal, LazyVal
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten, prims


@lowers(
    aten.full.default, aten.full_like.default, aten.new_full.default, aten.zeros.default,
    aten.zeros_like.default, aten.new_zeros.default, aten.ones.default, aten.ones_like.default,
    aten.new_ones.default, aten.scalar_tensor.default,
)  # fmt: skip
def _full(low: Lowering, *args: Any, **_: Any) -> LazyVal:
    name = low.node.target._schema.name if low.node is not None else ""  # type: ignore[union-attr]
    value: Any = 0 if "zeros" in name else 1 if "ones" in name else None
    if value is None:
        value = args[0] if "scalar_tensor" in name else args[2] if "new_full" in name else args[1]
    if isinstance(value, BufVal | LazyVal):
        raise Unsupported("a fill value that is a tensor")
    literal = low.pool.lit(value, low.ctype)
    return lazy(low, lambda index: literal)


@lowers(aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)
def _empty(low: Lowering, *_: Any, **__: Any) -> LazyVal:
    return lazy(low, lambda index: low.pool.lit(0, low.ctype))


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step, prims.iota.default)
def _arange(low: Lowering, *args: Any, start: Any = 0, step: Any = 1, **_: Any) -> LazyVal:
    target = low.node.target if low.node is not None else None
    if target in (aten.arange.start, aten.arange.start_step):
        start = args[0]
        step = args[2] if len(args) > 2 else step
    kind, pool = low.ctype, low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        if isinstance(start, int) and isinstance(step, int):
            return pool.index(index[0] * step + start)
        count = pool.cast(pool.index(index[0]), kind)
        return pool.add(pool.lit(start, kind), pool.mul(pool.lit(step, kind), count))

    return lazy(low, make)


@lowers(aten.eye.default, aten.eye.m)
def _eye(low: Lowering, *_: Any, **__: Any) -> LazyVal:
    kind, pool = low.ctype, low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        test = pool.op("({0}=={1})", pool.index(index[0]), pool.index(index[1]), kind="bool")
        return pool.where(test, pool.lit(1, kind), pool.lit(0, kind))

    return lazy(low, make)
