"""Rules of matrix products: thin ones become loops, small ones templates, large ones BLAS."""

from __future__ import annotations

from math import prod
from typing import Any

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.expressions import RECOMPUTE_COST, Expr, Ix
from pyro_nfvi._engine.native.lowering import DOUBLE_SUM_FROM, Lowering, Rule, lowers
from pyro_nfvi._engine.native.masked_weights import MASKED_GRADIENT
from pyro_nfvi._engine.native.pointwise import lazy
from pyro_nfvi._engine.native.sparse_weights import Masked
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Val, contiguous
from pyro_nfvi._engine.native.views import reshape
from pyro_nfvi._operators import aten

#: Multiplications from which a product goes to BLAS: below, the call costs more than it saves.
_BLAS_FROM = 200_000
#: Numbers up to which the right side stays in the cache (256 kB of doubles): such a product is not
#: given to BLAS, however many rows the left side has.
_CACHED_SIZE = 32_768
#: Rows or columns below which a product is a loop, into which formulas are fused.
_LOOP_BELOW = 3
#: Numbers below which a matrix is multiplied by a vector in a loop, into which formulas are fused.
_GEMV_FROM = 256
#: Columns beyond which a product of masked weights goes to BLAS, zeros included.
_MASKED_COLUMNS = 128


def _once(low: Lowering, x: Val) -> Val:
    """Compute an operand that is read many times, unless reading it costs nothing."""
    return low.realize(x) if isinstance(x, LazyVal) and x.probe().cost > RECOMPUTE_COST else x


def _product(low: Lowering, a: Val, b: Val, bias: Val | None = None) -> Val:
    """Multiply ``(M, K)`` by ``(K, N)``, add a bias that broadcasts."""
    (m, k), n = a.shape, b.shape[1]
    kind, pool = low.ctype, low.pool
    if m == 0 or n == 0 or k == 0:
        return lazy(low, lambda i: pool.lit(0, kind) if bias is None else low.scalar(bias, i, kind))
    if k == 1:
        a, b = _once(low, a), _once(low, b)

        def outer(index: tuple[Ix, ...]) -> Expr:
            value = pool.mul(a.load((index[0], Ix())), b.load((Ix(), index[1])))
            return value if bias is None else pool.add(value, low.scalar(bias, index, kind))

        return lazy(low, outer)
    made = _vector(low, a, b)
    if made is not None:
        plain = made
        if bias is None:
            return plain
        return lazy(low, lambda i: pool.add(plain.load(i), low.scalar(bias, i, kind)))
    if min(m, n) < _LOOP_BELOW or prod((m, n, k)) <= 64:
        return _thin(low, a, b, bias)
    return _gemm(low, low.realize(a), low.realize(b), bias)


def _vector(low: Lowering, a: Val, b: Val) -> BufVal | None:
    """Multiply a matrix in memory by a vector; None where that is not what there is to do."""
    (m, k), n = a.shape, b.shape[1]
    if (m == 1) == (n == 1) or m * n * k < _GEMV_FROM or k >= DOUBLE_SUM_FROM:
        return None
    matrix, vector, count = (b, a, n) if m == 1 else (a, b, m)
    if not isinstance(matrix, BufVal) or matrix.ctype not in ("float", "double"):
        return None
    over, along = matrix.strides if m == 1 else matrix.strides[::-1]  # the summed axis, the other
    if along == 1 and over >= count:
        name, step = "row_gemv", over
    elif over == 1 and along >= k:
        name, step = "dot_gemv", along
    else:
        return None
    x = low.dense(reshape(low, vector, (k,)))
    made = low.new((m, n), matrix.ctype)
    holes = _blocks(low, matrix)
    if holes is not None:
        low.call(
            f"{name}_holes<{matrix.ctype},{count},{k}>"
            f"({matrix.pointer},{x.pointer},{made.pointer},{holes.pointer});",
            [matrix, x, holes],
            [made],
        )
        return made
    low.call(
        f"{name}<{matrix.ctype},{count},{k},{step}>({matrix.pointer},{x.pointer},{made.pointer});",
        [matrix, x],
        [made],
    )
    return made


def _thin(low: Lowering, a: Val, b: Val, bias: Val | None) -> Val:
    """Multiply as a sum over the middle axis; formulas of the operands are fused in."""
    (m, k), n = a.shape, b.shape[1]
    pool, kind = low.pool, low.ctype
    if n > 1:
        a = _once(low, a)
    if m > 1:
        b = _once(low, b)

    def load(index: tuple[Ix, ...]) -> Expr:
        i, j, inner = index
        return pool.mul(a.load((i, inner)), b.load((inner, j)))

    if bias is None:
        made = low.result()
        low.statement((m, n, k), load, made, reduced=frozenset({2}), how="sum")
        return made
    total = low.fresh((m, n), kind)
    low.statement((m, n, k), load, total, reduced=frozenset({2}), how="sum")
    return lazy(low, lambda i: pool.add(total.load(i), low.scalar(bias, i, kind)))


def _gemm(low: Lowering, a: BufVal, b: BufVal, bias: Val | None) -> BufVal:
    m, n = a.shape[0], b.shape[1]
    target = low.result()
    add = None if bias is None else _bias(low, bias, (m, n))
    if target.strides[1] != 1 and n != 1:  # an output that is wanted transposed
        add = None if add is None else _flipped(add)
        _multiply(low, _flipped(b), _flipped(a), add, _flipped(target))
    else:
        _multiply(low, a, b, add, target)
    return target


def _bias(low: Lowering, bias: Val, shape: tuple[int, int]) -> BufVal:
    bias = low.realize(bias)
    lead = 2 - len(bias.shape)
    strides = [0] * lead + [0 if n == 1 else s for n, s in zip(bias.shape, bias.strides)]
    return bias.window(shape, tuple(strides))


def _flipped(x: BufVal) -> BufVal:
    return x.window(x.shape[::-1], x.strides[::-1])


def _multiply(low: Lowering, a: BufVal, b: BufVal, add: BufVal | None, c: BufVal) -> None:
    """Emit ``c = a b + add`` where c has dense rows."""
    (m, k), n = a.shape, b.shape[1]
    kind = c.ctype
    holes, _ = low.masked.blocks(a)
    if not _fills_vectors(n, kind) or n > _MASKED_COLUMNS:
        holes = None
    near = k * n <= _CACHED_SIZE
    if holes is None and prod((m, n, k)) >= _BLAS_FROM and not near and _usable(a) and _usable(b):
        if add is not None:
            low.store(c, add.load)
        beta = 0 if add is None else 1
        low.call(
            f"blas_gemm(cx,{m},{n},{k},{a.pointer},{_leading(a)},{b.pointer},{_leading(b)},"
            f"{beta},{c.pointer},{max(c.strides[0], n)});",
            [a, b] if add is None else [a, b, c],
            [c],
        )
        return
    rows = -1 if add is None else add.strides[0]
    if n > 1 and b.strides[1] != 1:
        b = low.dense(BufVal(b.buffer, b.shape, b.strides, b.offset, low.pool))
    if add is not None and add.strides[1] == 0 and add.strides[0] == 1:
        rows = -2  # one number for each row
    elif add is not None and add.strides[1] != 1:
        packed = low.new((1 if add.strides[0] == 0 else m, n), kind)
        low.store(packed, add.window(packed.shape, add.strides).load)
        add = packed.window((m, n), (0 if packed.shape[0] == 1 else n, 1))
        rows = add.strides[0]
    source = "nullptr" if add is None else add.pointer
    if holes is not None:
        low.call(
            f"gemm_holes<{kind},{m},{n},{k},{a.strides[0]},{a.strides[1]},{b.strides[0]},"
            f"{c.strides[0]},{rows}>({a.pointer},{b.pointer},{source},{c.pointer},{holes.pointer});",
            [a, b, holes] if add is None else [a, b, add, holes],
            [c],
        )
        return
    low.call(
        f"small_gemm<{kind},{m},{n},{k},{a.strides[0]},{a.strides[1]},{b.strides[0]},"
        f"{c.strides[0]},{rows}>({a.pointer},{b.pointer},{source},{c.pointer});",
        [a, b] if add is None else [a, b, add],
        [c],
    )


def _fills_vectors(count: int, kind: str) -> bool:
    return count * {"float": 4, "double": 8}.get(kind, 1) % 64 == 0


def _blocks(low: Lowering, matrix: BufVal) -> BufVal | None:
    """Return the blocks of a masked matrix, as it lies in memory."""
    holes, turned = low.masked.blocks(matrix)
    if turned:
        holes, _ = low.masked.blocks(_flipped(matrix))
    return holes


@lowers(MASKED_GRADIENT)
def _masked_gradient(low: Lowering, a: Val, b: Val, one: Masked, output: Buffer) -> BufVal:
    """Multiply and mask: the gradient of weights, written where it goes."""
    (m, k), n = a.shape, b.shape[1]
    target = BufVal(output, (m, n), contiguous((m, n)), 0, low.pool)
    mask, kind = low.datum(one.mask), target.ctype
    holes = low.masked.table(one)
    if holes is not None and k == 1:
        left, right = (low.dense(reshape(low, x, (x.shape[0] * x.shape[1],))) for x in (a, b))
        if one.outer:
            for x, count, begin in ((left, m, 0), (right, n, m)):
                low.store(target.window((count,), (1,), begin), x.load, partial=True)
            return target
        full = low.masked.table(one, full=True)
        assert full is not None  # only where blocks are left out there may be none
        low.call(
            f"outer_holes<{kind},{m},{n}>({left.pointer},{right.pointer},{mask.pointer},"
            f"{target.pointer},{holes.pointer},{full.pointer});",
            [left, right, mask, holes, full],
            [target],
        )
        return target
    if holes is not None and k * n <= _CACHED_SIZE and n >= 16:
        left = low.realize(a)
        right = low.realize(b)
        if right.strides[1] != 1:
            right = low.dense(
                BufVal(right.buffer, right.shape, right.strides, right.offset, low.pool)
            )
        low.call(
            f"gradient_holes<{kind},{m},{n},{k},{left.strides[0]},{left.strides[1]},"
            f"{right.strides[0]}>({left.pointer},{right.pointer},{mask.pointer},"
            f"{target.pointer},{holes.pointer});",
            [left, right, mask, holes],
            [target],
        )
        return target
    product = _product(low, a, b)
    low.store(target, lambda i: low.pool.mul(product.load(i), mask.load(i)))
    return target


def _usable(x: BufVal) -> bool:
    """Tell whether BLAS can read a matrix in its present layout."""
    rows, columns = x.strides
    return (columns == 1 and rows >= x.shape[1]) or (rows == 1 and columns >= x.shape[0])


def _leading(x: BufVal) -> str:
    rows, columns = x.strides
    return f"false,{rows}" if columns == 1 and rows >= x.shape[1] else f"true,{columns}"


def _is_product(rule: Rule) -> Rule:
    rule.product = True  # type: ignore[attr-defined]
    return rule


@lowers(aten.mm.default)
@_is_product
def _mm(low: Lowering, a: Val, b: Val) -> Val:
    return _product(low, a, b)


@lowers(aten.addmm.default)
@_is_product
def _addmm(low: Lowering, bias: Val, a: Val, b: Val, *, beta: Any = 1, alpha: Any = 1) -> Val:
    pool, kind = low.pool, low.ctype
    if alpha != 1:
        plain, scale = a, pool.lit(alpha, kind)
        a = low.realize(LazyVal(a.shape, kind, lambda i: pool.mul(scale, plain.load(i))))
    if beta != 1:
        given, factor = bias, pool.lit(beta, kind)
        bias = LazyVal(bias.shape, kind, lambda i: pool.mul(factor, given.load(i)))
    return _product(low, a, b, bias)


@lowers(aten.mv.default)
def _mv(low: Lowering, a: Val, x: Val) -> Val:
    return reshape(low, _thin(low, a, reshape(low, x, (x.shape[0], 1)), None), low.shape)


@lowers(aten.addmv.default)
def _addmv(low: Lowering, y: Val, a: Val, x: Val, *, beta: Any = 1, alpha: Any = 1) -> Val:
    pool, kind = low.pool, low.ctype
    total = low.new((a.shape[0], 1), kind)
    column = reshape(low, x, (x.shape[0], 1))

    def load(index: tuple[Ix, ...]) -> Expr:
        return pool.mul(a.load((index[0], index[2])), column.load((index[2], Ix())))

    low.statement((*total.shape, a.shape[1]), load, total, reduced=frozenset({2}), how="sum")

    def make(index: tuple[Ix, ...]) -> Expr:
        product = pool.mul(pool.lit(alpha, kind), total.load((index[0], Ix())))
        return pool.add(pool.mul(pool.lit(beta, kind), low.scalar(y, index, kind)), product)

    return lazy(low, make)


@lowers(aten.dot.default, aten.vdot.default)
def _dot(low: Lowering, x: Val, y: Val) -> BufVal:
    made = low.result()
    pool = low.pool
    low.statement(
        x.shape,
        lambda i: pool.mul(x.load(i), y.load(i)),
        made,
        reduced=frozenset({0}),
        how="sum",
    )
    return made


@lowers(aten.bmm.default)
def _bmm(low: Lowering, a: Val, b: Val) -> Val:
    return _batched(low, a, b, None)


@lowers(aten.baddbmm.default)
def _baddbmm(low: Lowering, bias: Val, a: Val, b: Val, *, beta: Any = 1, alpha: Any = 1) -> Val:
    pool, kind = low.pool, low.ctype
    product = low.realize(_batched(low, a, b, None))

    def make(index: tuple[Ix, ...]) -> Expr:
        scaled = pool.mul(pool.lit(alpha, kind), product.load(index))
        return pool.add(pool.mul(pool.lit(beta, kind), low.scalar(bias, index, kind)), scaled)

    return lazy(low, make)


def _batched(low: Lowering, a: Val, b: Val, _bias: None) -> Val:
    count, m, k = a.shape
    n = b.shape[2]
    pool = low.pool
    small = prod((m, n, k)) <= 4096 or min(m, n) < _LOOP_BELOW or k == 1
    if small or count > 64:
        if n > 1:
            a = _once(low, a)
        if m > 1:
            b = _once(low, b)
        made = low.result()

        def load(index: tuple[Ix, ...]) -> Expr:
            c, i, j, inner = index
            return pool.mul(a.load((c, i, inner)), b.load((c, inner, j)))

        if k == 1:
            low.store(made, lambda i: load((*i, Ix())))
        elif k:
            low.statement((count, m, n, k), load, made, reduced=frozenset({3}), how="sum")
        else:
            low.store(made, lambda i: pool.lit(0, made.ctype))
        return made
    # Page by page, of which each has dense rows: not in the layout that has particles innermost.
    left, right = low.dense(a), low.dense(b)
    made = low.new((count, m, n), low.ctype)
    for c in range(count):
        _multiply(low, _page(left, c), _page(right, c), None, _page(made, c))
    return made


def _page(x: BufVal, c: int) -> BufVal:
    step = x.strides[0] if x.shape[0] > 1 else 0
    return x.window(x.shape[1:], x.strides[1:], c * step)
