"""Rules of sums, extremes and the like."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from pyro_nfvi._engine.native.expressions import RECOMPUTE_COST, Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, Rule, lowers
from pyro_nfvi._engine.native.pointwise import lazy
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Shape, Val
from pyro_nfvi._engine.native.views import reshape
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten


def _dims(x: Val, dim: Any) -> frozenset[int]:
    rank = len(x.shape)
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return frozenset(range(rank))
    listed = [dim] if isinstance(dim, int) else dim
    return frozenset(d % max(rank, 1) for d in listed) & frozenset(range(rank))


def reduction(
    low: Lowering, x: Val, dims: frozenset[int], how: str, kind: str, target: BufVal | None = None
) -> BufVal:
    """Reduce axes of a value; the result has none of them."""
    shape = tuple(n for d, n in enumerate(x.shape) if d not in dims)
    made = low.fresh(shape, kind) if target is None else target
    if not prod(x.shape):
        empty = {"sum": 0, "prod": 1, "all": 1, "any": 0}
        if how not in empty:
            raise Unsupported("the extreme of nothing")
        low.store(made, lambda index: low.pool.lit(empty[how], kind))
        return made
    low.statement(
        x.shape,
        lambda index: low.pool.cast(x.load(index), kind),
        made,
        reduced=dims,
        how=how,
    )
    return made


def _kept(low: Lowering, x: Val, dims: frozenset[int], how: str, kind: str) -> Val:
    """Reduce, with the axes kept if the node at hand keeps them."""
    return reshape(low, reduction(low, x, dims, how, kind), low.shape)


@lowers(aten.sum.default, aten.sum.dim_IntList)
def _sum(low: Lowering, x: Val, dim: Any = None, keepdim: bool = False, **_: Any) -> Val:  # noqa: FBT001, FBT002
    del keepdim
    dims = _dims(x, dim)
    if isinstance(x, LazyVal) and x.probe().op == "lit":  # a sum of one known number
        count = prod(x.shape[d] for d in dims)
        literal = low.pool.lit(x.probe().literal or 0, low.ctype)
        total = low.pool.lit(literal.args[0] * count, low.ctype)
        return lazy(low, lambda index: total)
    return _kept(low, x, dims, "sum", low.ctype)


@lowers(aten.nansum.default)
def _nansum(low: Lowering, x: Val, dim: Any = None, keepdim: bool = False, **_: Any) -> Val:  # noqa: FBT001, FBT002
    del keepdim
    pool = low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        value = x.load(index)
        test = pool.op("({0}=={0})", value, kind="bool")
        return pool.where(test, value, pool.lit(0, x.ctype))

    return _kept(low, LazyVal(x.shape, x.ctype, make), _dims(x, dim), "sum", low.ctype)


@lowers(aten.mean.default, aten.mean.dim)
def _mean(low: Lowering, x: Val, dim: Any = None, keepdim: bool = False, **_: Any) -> Val:  # noqa: FBT001, FBT002
    del keepdim
    dims = _dims(x, dim)
    count = prod(x.shape[d] for d in dims)
    total = _kept(low, x, dims, "sum", low.ctype)
    literal = low.pool.lit(count, low.ctype)
    return lazy(low, lambda index: low.pool.div(total.load(index), literal))


def _simple(how: str) -> Rule:
    def rule(low: Lowering, x: Val, dim: Any = None, *_: Any, **__: Any) -> Val:
        return _kept(low, x, _dims(x, dim), how, low.ctype)

    return rule


lowers(aten.amax.default, aten.max.default)(_simple("max"))
lowers(aten.amin.default, aten.min.default)(_simple("min"))
lowers(aten.prod.default, aten.prod.dim_int)(_simple("prod"))
lowers(aten.all.default, aten.all.dim, aten.all.dims)(_simple("all"))
lowers(aten.any.default, aten.any.dim, aten.any.dims)(_simple("any"))


def _extreme(how: str) -> Rule:
    """Return the rule of ``max`` and ``min`` along an axis, with the place where it is."""
    sign = ">" if how == "max" else "<"

    def rule(low: Lowering, x: Val, dim: int, keepdim: bool = False) -> list[Val]:  # noqa: FBT001, FBT002
        del keepdim
        source = low.dense(x)
        rank = max(1, len(source.shape))
        dim %= rank
        shape = low.shape
        values, places = low.new(shape, x.ctype), low.new(shape, "int64_t")
        n = source.shape[dim] if source.shape else 1
        inner = prod(source.shape[dim + 1 :])
        outer = prod(source.shape[:dim])
        low.call(
            f"for(int64_t o=0;o<{outer};o++) for(int64_t i=0;i<{inner};i++){{"
            f"const {x.ctype}* p={source.pointer}+o*{n * inner}+i; int64_t best=0;"
            f"for(int64_t k=1;k<{n};k++) "
            f"if(!(p[best*{inner}]!=p[best*{inner}])&&"
            f"(p[k*{inner}]{sign}p[best*{inner}]||p[k*{inner}]!=p[k*{inner}])) best=k;"
            f"{values.pointer}[o*{inner}+i]=p[best*{inner}];"
            f"{places.pointer}[o*{inner}+i]=best;}}",
            [source],
            [values, places],
        )
        return [values, places]

    return rule


lowers(aten.max.dim)(_extreme("max"))
lowers(aten.min.dim)(_extreme("min"))


@lowers(aten.argmax.default)
def _argmax(low: Lowering, x: Val, dim: int | None = None, keepdim: bool = False) -> Val:  # noqa: FBT001, FBT002
    if dim is None:
        x, dim = reshape(low, x, (prod(x.shape),)), 0
    return reshape(low, _extreme("max")(low, x, dim, keepdim)[1], low.shape)


def _repeated(low: Lowering, x: Val, shape: Shape, dims: frozenset[int]) -> LazyVal:
    """See a value without the axes ``dims`` as one that is repeated along them."""
    del low

    def load(index: tuple[Ix, ...]) -> Expr:
        return x.load(tuple(i for d, i in enumerate(index) if d not in dims))

    return LazyVal(shape, x.ctype, load)


def _shifted_exp(low: Lowering, x: Val, dims: frozenset[int]) -> tuple[LazyVal, LazyVal, LazyVal]:
    """Return x minus its maximum, the sum of its exponentials, and the maximum.

    An infinite maximum is not taken off.
    """
    pool, kind = low.pool, x.ctype
    if isinstance(x, LazyVal) and x.probe().cost > RECOMPUTE_COST:
        x = low.realize(x)
    top = reduction(low, x, dims, "max", kind)

    def bounded(index: tuple[Ix, ...]) -> Expr:
        value = top.load(index)
        test = pool.op("m_isfinite({0})", value, kind="bool")
        return pool.where(test, value, pool.lit(0, kind))

    tops = _repeated(low, LazyVal(top.shape, kind, bounded), x.shape, dims)
    shifted = LazyVal(x.shape, kind, lambda i: pool.sub(x.load(i), tops.load(i)))

    def exponential(index: tuple[Ix, ...]) -> Expr:
        return pool.op("m_exp({0})", shifted.load(index), kind=kind, cost=8)

    total = reduction(low, LazyVal(x.shape, kind, exponential), dims, "sum", kind)
    return shifted, _repeated(low, total, x.shape, dims), tops


@lowers(aten.logsumexp.default)
def _logsumexp(low: Lowering, x: Val, dim: Any, keepdim: bool = False) -> Val:  # noqa: FBT001, FBT002
    del keepdim
    dims, pool, kind = _dims(x, dim), low.pool, low.ctype
    _, total, top = _shifted_exp(low, x, dims)
    shape = tuple(n for d, n in enumerate(x.shape) if d not in dims)

    def make(index: tuple[Ix, ...]) -> Expr:
        rest = iter(index)
        full = tuple(Ix() if d in dims else next(rest) for d in range(len(x.shape)))
        logarithm = pool.op("m_log({0})", total.load(full), kind=kind, cost=8)
        return pool.add(logarithm, top.load(full))

    made = low.fresh(shape, kind)
    low.store(made, make)
    return reshape(low, made, low.shape)


@lowers(aten._softmax.default, aten.softmax.int)
def _softmax(low: Lowering, x: Val, dim: int, *_: Any) -> LazyVal:
    pool, kind = low.pool, low.ctype
    shifted, total, _top = _shifted_exp(low, x, _dims(x, dim))

    def make(index: tuple[Ix, ...]) -> Expr:
        exponential = pool.op("m_exp({0})", shifted.load(index), kind=kind, cost=8)
        return pool.div(exponential, total.load(index))

    return lazy(low, make)


@lowers(aten._log_softmax.default, aten.log_softmax.int)
def _log_softmax(low: Lowering, x: Val, dim: int, *_: Any) -> LazyVal:
    pool, kind = low.pool, low.ctype
    shifted, total, _top = _shifted_exp(low, x, _dims(x, dim))
    totals = low.realize(
        LazyVal(x.shape, kind, lambda i: pool.op("m_log({0})", total.load(i), kind=kind, cost=8))
        if len(x.shape) == 0
        else total
    )
    del totals

    def make(index: tuple[Ix, ...]) -> Expr:
        logarithm = pool.op("m_log({0})", total.load(index), kind=kind, cost=8)
        return pool.sub(shifted.load(index), logarithm)

    return lazy(low, make)


@lowers(aten._softmax_backward_data.default)
def _softmax_backward(low: Lowering, grad: Val, output: Val, dim: int, *_: Any) -> LazyVal:
    pool, kind, dims = low.pool, low.ctype, _dims(output, dim)
    product = LazyVal(
        output.shape, kind, lambda i: pool.mul(low.scalar(grad, i, kind), output.load(i))
    )
    total = _repeated(low, reduction(low, product, dims, "sum", kind), output.shape, dims)
    return lazy(
        low,
        lambda i: pool.mul(pool.sub(low.scalar(grad, i, kind), total.load(i)), output.load(i)),
    )


@lowers(aten._log_softmax_backward_data.default)
def _log_softmax_backward(low: Lowering, grad: Val, output: Val, dim: int, *_: Any) -> LazyVal:
    pool, kind, dims = low.pool, low.ctype, _dims(output, dim)
    total = _repeated(low, reduction(low, grad, dims, "sum", kind), output.shape, dims)

    def make(index: tuple[Ix, ...]) -> Expr:
        share = pool.op("m_exp({0})", output.load(index), kind=kind, cost=8)
        return pool.sub(low.scalar(grad, index, kind), pool.mul(share, total.load(index)))

    return lazy(low, make)


def _spread(low: Lowering, x: Val, dim: Any, correction: Any) -> tuple[Val, Val]:
    """Return variance and mean, without the reduced axes."""
    dims, pool, kind = _dims(x, dim), low.pool, low.ctype
    x = low.realize(x) if isinstance(x, LazyVal) and x.probe().cost > RECOMPUTE_COST else x
    count = prod(x.shape[d] for d in dims)
    total = reduction(low, x, dims, "sum", kind)
    number = pool.lit(count, kind)
    mean = low.realize(LazyVal(total.shape, kind, lambda i: pool.div(total.load(i), number)))
    means = _repeated(low, mean, x.shape, dims)

    def squares(index: tuple[Ix, ...]) -> Expr:
        return pool.op("m_sq({0})", pool.sub(x.load(index), means.load(index)), kind=kind)

    rest = pool.lit(max(0, count - (1 if correction is None else correction)), kind)
    total = reduction(low, LazyVal(x.shape, kind, squares), dims, "sum", kind)
    return LazyVal(total.shape, kind, lambda i: pool.div(total.load(i), rest)), mean


@lowers(aten.var.correction)
def _var(low: Lowering, x: Val, dim: Any = None, *, correction: Any = 1, keepdim: Any = 0) -> Val:
    del keepdim
    return reshape(low, _spread(low, x, dim, correction)[0], low.shape)


@lowers(aten.std.correction)
def _std(low: Lowering, x: Val, dim: Any = None, *, correction: Any = 1, keepdim: Any = 0) -> Val:
    variance = _var(low, x, dim, correction=correction, keepdim=keepdim)
    kind = low.ctype
    return lazy(low, lambda i: low.pool.op("m_sqrt({0})", variance.load(i), kind=kind, cost=4))


@lowers(aten.var_mean.correction)
def _var_mean(
    low: Lowering, x: Val, dim: Any = None, *, correction: Any = 1, keepdim: Any = 0
) -> list[Val]:
    del keepdim
    return [reshape(low, one, low.shape) for one in _spread(low, x, dim, correction)]


@lowers(aten.linalg_vector_norm.default)
def _vector_norm(
    low: Lowering, x: Val, order: float = 2, dim: Any = None, *_: Any, **__: Any
) -> Val:
    pool, kind = low.pool, low.ctype
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    squares = LazyVal(x.shape, kind, lambda i: pool.op("m_sq({0})", x.load(i), kind=kind))
    total = _kept(low, squares, _dims(x, dim), "sum", kind)
    return lazy(low, lambda i: pool.op("m_sqrt({0})", total.load(i), kind=kind, cost=4))
