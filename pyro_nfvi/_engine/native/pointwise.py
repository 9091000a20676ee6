"""Rules of the operations that work element by element."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from pyro_nfvi._engine.native.expressions import Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.values import BufVal, LazyVal, distinct_shape, remembered
from pyro_nfvi._operators import aten, prims

Vals = BufVal | LazyVal

_RANK = ["bool", "uint8_t", "int32_t", "int64_t", "float", "double"]


def lazy(low: Lowering, make: Callable[[tuple[Ix, ...]], Expr]) -> LazyVal:
    """Return the value of the node at hand as a formula, of the node's type."""
    kind = low.ctype
    return LazyVal(low.shape, kind, remembered(lambda index: low.pool.cast(make(index), kind)))


def common(*operands: Any) -> str:
    """Type in which operands meet, by torch's rules.

    A tensor of no axes, like a number, widens only the kind (integer to float), not the width.
    """
    ranks = {"wide": -1, "zero": -1, "number": -1}
    for x in operands:
        if isinstance(x, BufVal | LazyVal):
            key = "wide" if x.shape else "zero"
            ranks[key] = max(ranks[key], _RANK.index(x.ctype))
        else:
            rank = 0 if isinstance(x, bool) else 3 if isinstance(x, int) else 4
            ranks["number"] = max(ranks["number"], rank)

    def family(rank: int) -> int:
        return 0 if rank <= 0 else 1 if rank < 4 else 2

    best = ranks["wide"]
    for key in ("zero", "number"):
        if family(ranks[key]) > family(best):
            best = ranks[key]
    return _RANK[best]


#: One operand, floating result: template and cost. ``m_`` functions are those of math.h of ours.
_UNARY: dict[Any, tuple[str, int]] = {
    aten.exp: ("m_exp({0})", 8),
    aten.exp2: ("m_exp2({0})", 8),
    aten.expm1: ("m_expm1({0})", 10),
    aten.log: ("m_log({0})", 8),
    aten.log1p: ("m_log1p({0})", 10),
    aten.log2: ("m_log2({0})", 8),
    aten.log10: ("m_log10({0})", 8),
    aten.sqrt: ("m_sqrt({0})", 4),
    aten.rsqrt: ("(1/m_sqrt({0}))", 5),
    aten.tanh: ("m_tanh({0})", 10),
    aten.sin: ("m_sin({0})", 10),
    aten.cos: ("m_cos({0})", 10),
    aten.tan: ("m_tan({0})", 10),
    aten.sinh: ("m_sinh({0})", 10),
    aten.cosh: ("m_cosh({0})", 10),
    aten.asin: ("m_asin({0})", 10),
    aten.acos: ("m_acos({0})", 10),
    aten.atan: ("m_atan({0})", 10),
    aten.asinh: ("m_asinh({0})", 10),
    aten.acosh: ("m_acosh({0})", 10),
    aten.atanh: ("m_atanh({0})", 10),
    aten.erf: ("m_erf({0})", 10),
    aten.erfc: ("m_erfc({0})", 10),
    aten.sigmoid: ("m_sigmoid({0})", 9),
    aten.lgamma: ("m_lgamma({0})", 40),
    aten.digamma: ("m_digamma({0})", 40),
    aten.special_psi: ("m_digamma({0})", 40),
    aten.reciprocal: ("(1/{0})", 2),
}
#: The same, but the compiler cannot put them into vectors.
_SERIAL: dict[Any, str] = {
    aten.erfinv: "m_erfinv({0})",
    aten.special_ndtri: "m_ndtri({0})",
    aten.special_log_ndtr: "m_log_ndtr({0})",
    aten.special_i0: "m_i0({0})",
    aten.special_i1: "m_i1({0})",
    aten.i0: "m_i0({0})",
    aten.special_i0e: "m_i0e({0})",
    aten.special_i1e: "m_i1e({0})",
}
#: One operand, result of its own type.
_SAME: dict[Any, tuple[str, int]] = {
    aten.abs: ("m_abs({0})", 1),
    aten.floor: ("m_floor({0})", 1),
    aten.ceil: ("m_ceil({0})", 1),
    aten.round: ("m_rint({0})", 1),
    aten.trunc: ("m_trunc({0})", 1),
    aten.sign: ("m_sign({0})", 2),
    aten.sgn: ("m_sign({0})", 2),
    aten.square: ("m_sq({0})", 1),
    aten.relu: ("m_relu({0})", 1),
}
#: Numbers of a quotient for each of its divisor from which the divisor is inverted once: a division
#: takes as long as some four products, and what is made of it is rounded twice.
_INVERTED_FROM = 4
_COMPARE = {
    aten.eq: "==",
    aten.ne: "!=",
    aten.lt: "<",
    aten.le: "<=",
    aten.gt: ">",
    aten.ge: ">=",
}
#: Without the branches of && and ||, which keep calls behind them from being vectorised.
_LOGICAL = {aten.logical_and: "&", aten.logical_or: "|", aten.logical_xor: "!="}
_BITWISE = {
    aten.bitwise_and: "&",
    aten.bitwise_or: "|",
    aten.bitwise_xor: "^",
    aten.__and__: "&",
    aten.__or__: "|",
}


def _overloads(packet: Any) -> list[Any]:
    return [
        getattr(packet, name)
        for name in packet.overloads()
        if "out" not in name and name not in ("int", "float", "complex", "bool", "str", "generator")
    ]


def _register() -> None:
    for packet, (template, cost) in _UNARY.items():
        lowers(*_overloads(packet))(unary(template, cost))
    for packet, template in _SERIAL.items():
        lowers(*_overloads(packet))(unary(template, 40, serial=True))
    for packet, (template, cost) in _SAME.items():
        lowers(*_overloads(packet))(unary(template, cost))
    for packet, sign in _COMPARE.items():
        lowers(*_overloads(packet))(_compare(sign))
    for packet, sign in _LOGICAL.items():
        lowers(*_overloads(packet))(_compare(sign, "bool"))
    for packet, sign in _BITWISE.items():
        lowers(*_overloads(packet))(_bitwise(sign))


def unary(template: str, cost: int, *, serial: bool = False) -> Callable[..., LazyVal]:
    """Return the rule of a function of one operand."""

    def rule(low: Lowering, x: Vals, **_: Any) -> LazyVal:
        kind = low.ctype

        def make(index: tuple[Ix, ...]) -> Expr:
            value = low.pool.cast(x.load(index), kind)
            return low.pool.op(template, value, kind=kind, cost=cost, serial=serial)

        return lazy(low, make)

    return rule


def _compare(sign: str, kind: str | None = None) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Any, y: Any, **_: Any) -> LazyVal:
        meet = common(x, y) if kind is None else kind

        def make(index: tuple[Ix, ...]) -> Expr:
            a, b = low.scalar(x, index, meet), low.scalar(y, index, meet)
            return low.pool.op(f"({{0}}{sign}{{1}})", a, b, kind="bool")

        return lazy(low, make)

    return rule


def _bitwise(sign: str) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Any, y: Any, **_: Any) -> LazyVal:
        kind = low.ctype

        def make(index: tuple[Ix, ...]) -> Expr:
            a, b = low.scalar(x, index, kind), low.scalar(y, index, kind)
            for one, other in ((a, b), (b, a)):
                if kind == "bool" and sign == "&" and one.literal is True:
                    return other
            return low.pool.op(f"({{0}}{sign}{{1}})", a, b, kind=kind)

        return lazy(low, make)

    return rule


def _arithmetic(name: str) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Any, y: Any, alpha: Any = 1, **_: Any) -> LazyVal:
        kind, pool = low.ctype, low.pool
        if name == "rsub":
            x, y = y, x

        def make(index: tuple[Ix, ...]) -> Expr:
            a, b = low.scalar(x, index, kind), low.scalar(y, index, kind)
            if alpha != 1 and name == "rsub":
                a_, b_ = a, pool.mul(pool.lit(alpha, kind), b)
                return pool.sub(a_, b_)
            if alpha != 1:
                b = pool.mul(pool.lit(alpha, kind), b)
            operation: Callable[[Expr, Expr], Expr] = getattr(pool, name.removeprefix("r"))
            return operation(a, b)

        return lazy(low, make)

    return rule


for _packet, _name in (
    (aten.add, "add"), (aten.sub, "sub"), (aten.rsub, "rsub"), (aten.mul, "mul"),
):  # fmt: skip
    lowers(*_overloads(_packet))(_arithmetic(_name))


@lowers(*_overloads(aten.div))
def _div(low: Lowering, x: Any, y: Any, *, rounding_mode: str | None = None) -> LazyVal:
    if rounding_mode is not None:
        return _rounded(low, x, y, rounding_mode)
    return quotient(low, x, y, low.pool.div, low.pool.mul)


def quotient(
    low: Lowering,
    x: Any,
    y: Any,
    divide: Callable[[Expr, Expr], Expr],
    multiply: Callable[[Expr, Expr], Expr],
) -> LazyVal:
    """Divide; by what has far fewer numbers than the result, multiply by its inverse instead."""
    kind, operation = low.ctype, divide
    narrow = isinstance(y, BufVal | LazyVal) and (
        prod(distinct_shape(y)) * _INVERTED_FROM <= prod(low.shape)
    )
    known = isinstance(y, LazyVal) and y.probe().op == "lit"
    if kind in ("float", "double") and narrow and not known:
        y, operation = low.inverse(y, kind), multiply
    return lazy(low, lambda i: operation(low.scalar(x, i, kind), low.scalar(y, i, kind)))


def _rounded(low: Lowering, x: Any, y: Any, mode: str) -> LazyVal:
    kind = low.ctype
    template = f"m_div_{mode}({{0}},{{1}})"

    def make(index: tuple[Ix, ...]) -> Expr:
        a, b = low.scalar(x, index, kind), low.scalar(y, index, kind)
        return low.pool.op(template, a, b, kind=kind, cost=4)

    return lazy(low, make)


@lowers(*_overloads(aten.floor_divide))
def _floor_divide(low: Lowering, x: Any, y: Any) -> LazyVal:
    return _rounded(low, x, y, "floor")


def _binary(template: str, cost: int) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Any, y: Any, **_: Any) -> LazyVal:
        kind = low.ctype

        def make(index: tuple[Ix, ...]) -> Expr:
            a, b = low.scalar(x, index, kind), low.scalar(y, index, kind)
            return low.pool.op(template, a, b, kind=kind, cost=cost)

        return lazy(low, make)

    return rule


for _packet, _template, _cost in (
    (aten.maximum, "m_max({0},{1})", 2),
    (aten.minimum, "m_min({0},{1})", 2),
    (aten.fmax, "m_fmax({0},{1})", 2),
    (aten.fmin, "m_fmin({0},{1})", 2),
    (aten.atan2, "m_atan2({0},{1})", 15),
    (aten.hypot, "m_hypot({0},{1})", 6),
    (aten.remainder, "m_remainder({0},{1})", 6),
    (aten.fmod, "m_fmod({0},{1})", 6),
    (aten.logaddexp, "m_logaddexp({0},{1})", 20),
    (aten.xlogy, "m_xlogy({0},{1})", 10),
    (aten.special_xlog1py, "m_xlog1py({0},{1})", 10),
    (aten.copysign, "m_copysign({0},{1})", 2),
):
    lowers(*_overloads(_packet))(_binary(_template, _cost))

_POWERS = {
    0.5: "m_sqrt({0})",
    -0.5: "(1/m_sqrt({0}))",
    2: "m_sq({0})",
    3: "m_cube({0})",
    4: "m_sq(m_sq({0}))",
    -1: "(1/{0})",
    -2: "(1/m_sq({0}))",
}


@lowers(*_overloads(aten.pow))
def _pow(low: Lowering, x: Any, y: Any) -> LazyVal:
    kind, pool = low.ctype, low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        a, b = low.scalar(x, index, kind), low.scalar(y, index, kind)
        known = b.literal
        if known == 1:
            return a
        if known == 0:
            return pool.lit(1, kind)
        if known in _POWERS and (kind in ("float", "double") or known > 0):
            return pool.op(_POWERS[known], a, kind=kind, cost=2)
        return pool.op("m_pow({0},{1})", a, b, kind=kind, cost=20)

    return lazy(low, make)


@lowers(aten.neg.default)
def _neg(low: Lowering, x: Vals) -> LazyVal:
    return lazy(low, lambda index: low.pool.neg(x.load(index)))


@lowers(aten.positive.default, aten.clone.default, aten.lift_fresh_copy.default)
def _same(low: Lowering, x: Vals, **_: Any) -> Any:
    return x


@lowers(aten.logical_not.default)
def _logical_not(low: Lowering, x: Vals) -> LazyVal:
    return lazy(
        low,
        lambda i: low.pool.op("(!{0})", low.pool.cast(x.load(i), "bool"), kind="bool"),
    )


@lowers(aten.bitwise_not.default)
def _bitwise_not(low: Lowering, x: Vals) -> LazyVal:
    kind = low.ctype
    template = "(!{0})" if kind == "bool" else "(~{0})"
    return lazy(low, lambda i: low.pool.op(template, x.load(i), kind=kind))


def _test(template: str) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Vals) -> LazyVal:
        if x.ctype not in ("float", "double"):
            finite = template == "m_isfinite({0})"
            return lazy(low, lambda i: low.pool.lit(finite, "bool"))
        return lazy(low, lambda i: low.pool.op(template, x.load(i), kind="bool"))

    return rule


for _target, _template in (
    (aten.isnan.default, "({0}!={0})"),
    (aten.isinf.default, "m_isinf({0})"),
    (aten.isfinite.default, "m_isfinite({0})"),
):
    lowers(_target)(_test(_template))


@lowers(aten._to_copy.default, prims.convert_element_type.default)
def _convert(low: Lowering, x: Vals, *_: Any, **__: Any) -> Any:
    kind = low.ctype
    if x.ctype == kind:
        return x
    return lazy(low, lambda index: low.pool.cast(x.load(index), kind))


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def _where(low: Lowering, c: Vals, x: Any, y: Any) -> LazyVal:
    kind = low.ctype

    def make(index: tuple[Ix, ...]) -> Expr:
        test = low.scalar(c, index, "bool")
        return low.pool.where(test, low.scalar(x, index, kind), low.scalar(y, index, kind))

    return lazy(low, make)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(low: Lowering, x: Vals, mask: Vals, value: Any) -> LazyVal:
    return _where(low, mask, value, x)


@lowers(
    aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default,
    aten.clamp_min.Tensor, aten.clamp_max.Tensor,
)  # fmt: skip
def _clamp(low: Lowering, x: Vals, low_: Any = None, high: Any = None, **kw: Any) -> LazyVal:
    target = low.node.target if low.node is not None else None
    low_, high = kw.get("min", low_), kw.get("max", high)
    if target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        low_, high = None, low_
    kind, pool = low.ctype, low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        value = pool.cast(x.load(index), kind)
        if low_ is not None:
            bound = low.scalar(low_, index, kind)
            value = pool.op("m_max({0},{1})", value, bound, kind=kind)
        if high is not None:
            bound = low.scalar(high, index, kind)
            value = pool.op("m_min({0},{1})", value, bound, kind=kind)
        return value

    return lazy(low, make)


_register()
