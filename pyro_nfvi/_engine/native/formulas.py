"""Rules of operations with a formula of their own: backward formulas, softplus, gamma functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import pyro_nfvi._chain_rule  # noqa: F401 - defines the operations of its rule
from pyro_nfvi._engine.native.expressions import Expr, Ix
from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.pointwise import lazy, quotient, unary
from pyro_nfvi._engine.native.values import BufVal, LazyVal
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten

Vals = BufVal | LazyVal


def _formula(template: str, cost: int, *, serial: bool = False) -> Callable[..., LazyVal]:
    """Return a rule for operands in the result's type, in the order of the arguments."""

    def rule(low: Lowering, *operands: Any, **_: Any) -> LazyVal:
        kind = low.ctype

        def make(index: tuple[Ix, ...]) -> Expr:
            parts = [low.scalar(x, index, kind) for x in operands]
            return low.pool.op(template, *parts, kind=kind, cost=cost, serial=serial)

        return lazy(low, make)

    return rule


for _target, _template, _cost in (
    (aten.tanh_backward.default, "({0}*(1-{1}*{1}))", 3),
    (aten.sigmoid_backward.default, "({0}*(1-{1})*{1})", 3),
    (torch.ops.pyro_nfvi.product.default, "m_product({0},{1})", 2),
    (aten.softplus_backward.default, "m_softplus_backward({0},{1},{2},{3})", 12),
    (aten.log_sigmoid_backward.default, "({0}*m_sigmoid(-{1}))", 10),
    (aten.lerp.Scalar, "({0}+{2}*({1}-{0}))", 3),
    (aten.lerp.Tensor, "({0}+{2}*({1}-{0}))", 3),
):
    lowers(_target)(_formula(_template, _cost))


@lowers(torch.ops.pyro_nfvi.quotient.default)
def _chain_quotient(low: Lowering, x: Any, y: Any) -> LazyVal:
    """Quotient of the chain rule, where an exact zero wins."""
    kind, pool = low.ctype, low.pool

    def divide(a: Expr, b: Expr) -> Expr:
        inverse = pool.inverse(b)
        if inverse is not None:
            return multiply(a, inverse)
        return pool.op("m_quotient({0},{1})", a, b, kind=kind, cost=3)

    def multiply(a: Expr, inverse: Expr) -> Expr:
        return pool.op("m_part({0},{1})", a, inverse, kind=kind, cost=2)

    return quotient(low, x, y, divide, multiply)


@lowers(aten.log_sigmoid_forward.default)
def _log_sigmoid(low: Lowering, x: Vals) -> list[LazyVal]:
    return [unary("m_log_sigmoid({0})", 15)(low, x)] * 2


@lowers(aten.softplus.default)
def _softplus(low: Lowering, x: Vals, beta: float = 1, threshold: float = 20) -> LazyVal:
    rule = _formula("m_softplus({0},{1},{2})", 16)
    made: LazyVal = rule(low, x, beta, threshold)
    return made


@lowers(aten.threshold_backward.default)
def _threshold_backward(low: Lowering, grad: Vals, x: Vals, threshold: float) -> LazyVal:
    rule = _formula("({1}>{2}?{0}:0)", 1)
    made: LazyVal = rule(low, grad, x, threshold)
    return made


@lowers(aten.polygamma.default)
def _polygamma(low: Lowering, n: int, x: Vals) -> LazyVal:
    if n == 0:
        return unary("m_digamma({0})", 40)(low, x)
    if n == 1:
        return unary("m_trigamma({0})", 40, serial=True)(low, x)
    return unary(f"m_polygamma({n},{{0}})", 60, serial=True)(low, x)


@lowers(aten.mvlgamma.default)
def _mvlgamma(low: Lowering, x: Vals, p: int) -> LazyVal:
    constant = p * (p - 1) / 4 * math.log(math.pi)
    terms = "+".join(f"m_lgamma({{0}}-({j / 2}))" for j in range(p))
    return unary(f"({constant!r}+{terms})", 40 * p, serial=True)(low, x)


def _add_product(sign: str) -> Callable[..., LazyVal]:
    def rule(low: Lowering, x: Any, a: Any, b: Any, *, value: float = 1) -> LazyVal:
        kind, pool = low.ctype, low.pool

        def make(index: tuple[Ix, ...]) -> Expr:
            first, second = low.scalar(a, index, kind), low.scalar(b, index, kind)
            part = pool.mul(first, second) if sign == "*" else pool.div(first, second)
            part = pool.mul(pool.lit(value, kind), part)
            return pool.add(low.scalar(x, index, kind), part)

        return lazy(low, make)

    return rule


lowers(aten.addcmul.default)(_add_product("*"))
lowers(aten.addcdiv.default)(_add_product("/"))


@lowers(aten.nan_to_num.default)
def _nan_to_num(
    low: Lowering,
    x: Vals,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Any:
    if low.ctype not in ("float", "double"):
        return x
    limits = torch.finfo(low.out.dtype)
    return _formula("m_nan_to_num({0},{1},{2},{3})", 4)(
        low,
        x,
        0.0 if nan is None else nan,
        limits.max if posinf is None else posinf,
        limits.min if neginf is None else neginf,
    )


@lowers(aten.binary_cross_entropy_with_logits.default)
def _bernoulli(
    low: Lowering,
    x: Vals,
    target: Vals,
    weight: Vals | None = None,
    pos_weight: Vals | None = None,
    reduction: int = 1,
) -> LazyVal:
    if pos_weight is not None or reduction != 0:
        raise Unsupported("weights of the positive class, or a reduction")
    kind, pool = low.ctype, low.pool

    def make(index: tuple[Ix, ...]) -> Expr:
        logit, wanted = low.scalar(x, index, kind), low.scalar(target, index, kind)
        rest = pool.op("m_softplus_all(-{0})", logit, kind=kind, cost=16)
        loss = pool.add(pool.mul(pool.sub(pool.lit(1, kind), wanted), logit), rest)
        return loss if weight is None else pool.mul(low.scalar(weight, index, kind), loss)

    return lazy(low, make)
