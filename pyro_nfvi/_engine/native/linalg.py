"""Rules of small factorisations and of systems of equations."""

from __future__ import annotations

from math import prod
from typing import Any

from pyro.distributions.util import broadcast_shape

from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.pointwise import lazy
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Shape, Val
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten


def _copy(low: Lowering, x: Val, shape: Shape | None = None) -> BufVal:
    """Return a fresh dense copy, broadcast to a shape."""
    made = low.new(x.shape if shape is None else shape, x.ctype)
    low.store(made, lambda index: x.load(low.index(x, index)))
    return made


def _flags(*flags: Any) -> str:
    return ",".join("true" if flag else "false" for flag in flags)


def _pages(x: BufVal) -> tuple[int, int]:
    """Return how many matrices there are, and the numbers in each."""
    return prod(x.shape[:-2]), prod(x.shape[-2:])


def _no_error(low: Lowering, shape: Shape) -> LazyVal:
    return LazyVal(shape, "int32_t", lambda index: low.pool.lit(0, "int32_t"))


def _cholesky(low: Lowering, x: Val, *, upper: bool) -> BufVal:
    made = _copy(low, x)
    count, size = _pages(made)
    low.call(
        f"for(int64_t p=0;p<{count};p++) "
        f"cholesky<{made.ctype}>({made.shape[-1]},{made.pointer}+p*{size},{_flags(upper)});",
        [made],
        [made],
    )
    return made


@lowers(aten.linalg_cholesky_ex.default)
def _cholesky_ex(low: Lowering, x: Val, *, upper: bool = False, **_: Any) -> list[Val]:
    return [_cholesky(low, x, upper=upper), _no_error(low, x.shape[:-2])]


@lowers(aten._linalg_check_errors.default)
def _check_errors(low: Lowering, *_: Any, **__: Any) -> None:
    """Skip it: a factor that does not exist is NaN already."""


@lowers(aten.cholesky.default, aten.linalg_cholesky.default)
def _cholesky_plain(low: Lowering, x: Val, upper: bool = False) -> BufVal:  # noqa: FBT001, FBT002
    return _cholesky(low, x, upper=upper)


def _solve(
    low: Lowering, a: Val, b: Val, *, upper: bool, left: bool = True, unit: bool = False
) -> BufVal:
    """Solve ``a x = b``, or ``x a = b``, for triangular a."""
    if not left:  # a^T x^T = b^T, with the rows of x^T side by side in memory
        turned = _solve(low, _turned(a), _turned(b), upper=not upper, unit=unit)
        return turned.window(
            (*turned.shape[:-2], *turned.shape[:-3:-1]),
            (*turned.strides[:-2], *turned.strides[:-3:-1]),
        )
    batch = tuple(broadcast_shape(a.shape[:-2], b.shape[:-2]))
    x = _copy(low, b, (*batch, *b.shape[-2:]))
    n = a.shape[-1]
    matrix = low.realize(a)
    if x.shape[-1] > 1 and 1 not in matrix.strides[-2:]:  # its numbers are read for every column
        matrix = low.dense(matrix)
    if matrix.shape[:-2] != batch or len(batch) > 1:
        matrix = _copy(low, matrix, (*batch, n, n))
    step = matrix.strides[0] if len(matrix.shape) > 2 and matrix.shape[0] > 1 else 0
    if len(batch) > 1:
        step = n * n
    a0, a1 = matrix.strides[-2:]
    x0, x1 = x.strides[-2:]
    m = x.shape[-1]
    count, size = _pages(x)
    low.call(
        f"for(int64_t p=0;p<{count};p++) solve_triangular<{x.ctype}>({n},{m},"
        f"{matrix.pointer}+p*{step},{a0},{a1},{_flags(upper, unit)},"
        f"{x.pointer}+p*{size},{x0},{x1});",
        [matrix, x],
        [x],
    )
    return x


@lowers(aten.linalg_solve_triangular.default)
def _solve_triangular(
    low: Lowering,
    a: Val,
    b: Val,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> BufVal:
    return _solve(low, a, b, upper=upper, left=left, unit=unitriangular)


def _turned(x: Val) -> Val:
    """Return the transpose of the last two axes."""
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    if isinstance(x, BufVal):
        return x.window(shape, (*x.strides[:-2], x.strides[-1], x.strides[-2]))
    return LazyVal(shape, x.ctype, lambda i: x.load((*i[:-2], i[-1], i[-2])))


@lowers(aten.triangular_solve.default)
def _triangular_solve(
    low: Lowering,
    b: Val,
    a: Val,
    upper: bool = True,  # noqa: FBT001, FBT002
    transpose: bool = False,  # noqa: FBT001, FBT002
    unitriangular: bool = False,  # noqa: FBT001, FBT002
) -> list[Val]:
    if transpose:
        return [_solve(low, _turned(a), b, upper=not upper, unit=unitriangular), a]
    return [_solve(low, a, b, upper=upper, unit=unitriangular), a]


def _cholesky_solve(low: Lowering, b: Val, factor: Val, *, upper: bool) -> BufVal:
    """Solve from ``factor factor^T`` (lower) or ``factor^T factor`` (upper)."""
    factor = low.realize(factor)
    first, second = (_turned(factor), factor) if upper else (factor, _turned(factor))
    return _solve(low, second, _solve(low, first, b, upper=False), upper=True)


@lowers(aten.cholesky_solve.default, aten._cholesky_solve_helper.default)
def _cholesky_solve_rule(low: Lowering, b: Val, factor: Val, upper: bool = False) -> BufVal:  # noqa: FBT001, FBT002
    return _cholesky_solve(low, b, factor, upper=upper)


@lowers(aten.cholesky_inverse.default)
def _cholesky_inverse(low: Lowering, factor: Val, upper: bool = False) -> BufVal:  # noqa: FBT001, FBT002
    return _cholesky_solve(low, _identity(low, factor.shape, factor.ctype), factor, upper=upper)


def _identity(low: Lowering, shape: Shape, kind: str) -> LazyVal:
    pool = low.pool

    def load(index: Any) -> Any:
        same = pool.op("({0}=={1})", pool.index(index[-2]), pool.index(index[-1]), kind="bool")
        return pool.where(same, pool.lit(1, kind), pool.lit(0, kind))

    return LazyVal(shape, kind, load)


def _factor(low: Lowering, a: Val) -> tuple[BufVal, BufVal, BufVal]:
    """Return the LU factors, the pivots and the sign of the permutation."""
    lu = _copy(low, a)
    count, size = _pages(lu)
    n = lu.shape[-1]
    pivots = low.new((*lu.shape[:-2], n), "int32_t")
    sign = low.new(lu.shape[:-2], lu.ctype)
    low.call(
        f"for(int64_t p=0;p<{count};p++) {sign.pointer}[p]=lu_factor<{lu.ctype}>("
        f"{n},{lu.pointer}+p*{size},{pivots.pointer}+p*{n});",
        [lu],
        [lu, pivots, sign],
    )
    return lu, pivots, sign


def _lu_solve(
    low: Lowering, lu: Val, pivots: Val, b: Val, *, left: bool = True, adjoint: bool = False
) -> BufVal:
    lu, pivots = low.dense(lu), low.dense(pivots)
    if lu.shape[:-2] != b.shape[:-2]:
        raise Unsupported("a system whose two sides have different batches")
    x = _copy(low, b)
    count, size = _pages(x)
    n = lu.shape[-1]
    x0, x1, m = x.shape[-1], 1, x.shape[-1]
    if not left:
        x0, x1, m, adjoint = 1, x.shape[-1], x.shape[-2], not adjoint
    low.call(
        f"for(int64_t p=0;p<{count};p++) lu_solve<{x.ctype}>({n},{m},{lu.pointer}+p*{n * n},"
        f"{pivots.pointer}+p*{n},{_flags(adjoint)},{x.pointer}+p*{size},{x0},{x1});",
        [lu, pivots, x],
        [x],
    )
    return x


@lowers(aten.linalg_inv_ex.default)
def _inverse(low: Lowering, a: Val, **_: Any) -> list[Val]:
    lu, pivots, sign = _factor(low, a)
    identity = _identity(low, a.shape, a.ctype)
    return [_lu_solve(low, lu, pivots, identity), _zero_pivots(low, lu, sign)]


@lowers(aten._linalg_solve_ex.default)
def _solve_ex(low: Lowering, a: Val, b: Val, *, left: bool = True, **_: Any) -> list[Val]:
    vector = len(b.shape) == 1 or b.shape == a.shape[:-1]
    if vector:
        raise Unsupported("a system with a vector on the right")
    lu, pivots, sign = _factor(low, a)
    x = _lu_solve(low, lu, pivots, b, left=left)
    return [x, lu, pivots, _zero_pivots(low, lu, sign)]


@lowers(aten.linalg_lu_solve.default)
def _lu_solve_rule(
    low: Lowering, lu: Val, pivots: Val, b: Val, *, left: bool = True, adjoint: bool = False
) -> BufVal:
    return _lu_solve(low, lu, pivots, b, left=left, adjoint=adjoint)


@lowers(aten.linalg_lu_factor_ex.default)
def _lu_factor_ex(low: Lowering, a: Val, **_: Any) -> list[Val]:
    lu, pivots, sign = _factor(low, a)
    return [lu, pivots, _zero_pivots(low, lu, sign)]


def _diagonal(lu: BufVal) -> BufVal:
    strides = (*lu.strides[:-2], lu.strides[-2] + lu.strides[-1])
    return lu.window(lu.shape[:-1], strides)


def _multiplied(low: Lowering, lu: BufVal, sign: BufVal, template: str, how: str) -> BufVal:
    """Reduce a function of the factors' diagonal, over each matrix."""
    pool, diagonal = low.pool, _diagonal(lu)
    made = low.new(sign.shape, sign.ctype)
    low.statement(
        diagonal.shape,
        lambda i: pool.op(template, diagonal.load(i), kind=sign.ctype, cost=8),
        made,
        reduced=frozenset({len(diagonal.shape) - 1}),
        how=how,
    )
    return made


def _zero_pivots(low: Lowering, lu: BufVal, sign: BufVal) -> LazyVal:
    """Count the pivots that are 0, each of which makes a matrix singular."""
    count = _multiplied(low, lu, sign, "({0}==0?1:0)", "sum")
    return LazyVal(sign.shape, "int32_t", lambda index: low.pool.cast(count.load(index), "int32_t"))


@lowers(aten._linalg_det.default)
def _det(low: Lowering, a: Val) -> list[Val]:
    lu, pivots, sign = _factor(low, a)
    product = _multiplied(low, lu, sign, "({0})", "prod")
    return [lazy(low, lambda i: low.pool.mul(product.load(i), sign.load(i))), lu, pivots]


@lowers(aten._linalg_slogdet.default)
def _slogdet(low: Lowering, a: Val) -> list[Val]:
    lu, pivots, sign = _factor(low, a)
    signs = _multiplied(low, lu, sign, "m_sign({0})", "prod")
    total = _multiplied(low, lu, sign, "m_log(m_abs({0}))", "sum")
    return [lazy(low, lambda i: low.pool.mul(signs.load(i), sign.load(i))), total, lu, pivots]


@lowers(aten.linalg_qr.default)
def _qr(low: Lowering, a: Val, mode: str = "reduced") -> list[Val]:
    if mode == "r":
        raise Unsupported("the mode 'r', which gives no Q")
    n, k = a.shape[-2:]
    m = n if mode == "complete" else min(n, k)
    held = _copy(low, a)
    tau = low.new((min(n, k),), a.ctype)
    q, r = low.new((*a.shape[:-2], n, m), a.ctype), low.new((*a.shape[:-2], m, k), a.ctype)
    low.call(
        f"for(int64_t p=0;p<{_pages(held)[0]};p++) qr<{a.ctype}>({n},{k},{m},"
        f"{held.pointer}+p*{n * k},{tau.pointer},{q.pointer}+p*{n * m},{r.pointer}+p*{m * k},{m});",
        [held],
        [held, tau, q, r],
    )
    return [q, r]
