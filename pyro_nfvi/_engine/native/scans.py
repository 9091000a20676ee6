"""Rules of running sums, products and extremes."""

from __future__ import annotations

from math import prod
from typing import Any

from pyro_nfvi._engine.native.lowering import Lowering, Rule, lowers
from pyro_nfvi._engine.native.values import BufVal, Val
from pyro_nfvi._operators import aten


def _scan(sign: str, start: str) -> Rule:
    def rule(low: Lowering, x: Val, dim: int, **_: Any) -> BufVal:
        kind = low.ctype
        source = low.realize(x)
        if source.ctype != kind:
            other = low.new(source.shape, kind)
            low.store(other, source.load)
            source = other
        made = low.fresh(source.shape, kind)
        if not prod(source.shape):
            return made
        rank = len(source.shape)
        dim = dim % max(1, rank)
        others = [d for d in range(rank) if d != dim]
        # An axis that is dense in both runs in vectors, innermost.
        dense = (d for d in others if source.strides[d] == made.strides[d] == 1)
        inner = next((d for d in dense if source.shape[d] > 1), None)
        loops, first, second = [], [], []
        for d in others:
            if d != inner:
                loops.append(f"for(int64_t j{d}=0;j{d}<{source.shape[d]};j{d}++) ")
                first.append(f"+j{d}*{source.strides[d]}")
                second.append(f"+j{d}*{made.strides[d]}")
        n = source.shape[dim] if rank else 1
        step, to = (source.strides[dim], made.strides[dim]) if rank else (0, 0)
        if inner is None:
            body = (
                f"{kind} a={start};for(int64_t k=0;k<{n};k++){{a=a{sign}p[k*{step}];q[k*{to}]=a;}}"
            )
        else:
            along = f"\n#pragma omp simd\nfor(int64_t j=0;j<{source.shape[inner]};j++) "
            body = (
                f"{along}q[j]={start}{sign}p[j];for(int64_t k=1;k<{n};k++){{"
                f"{along}q[k*{to}+j]=q[(k-1)*{to}+j]{sign}p[k*{step}+j];}}"
            )
        low.call(
            f"{''.join(loops)}{{const {kind}* p={source.pointer}{''.join(first)};"
            f"{kind}* q={made.pointer}{''.join(second)};{body}}}",
            [source],
            [made],
        )
        return made

    return rule


lowers(aten.cumsum.default)(_scan("+", "0"))
lowers(aten.cumprod.default)(_scan("*", "1"))


def _running_extreme(sign: str) -> Rule:
    def rule(low: Lowering, x: Val, dim: int) -> list[Val]:
        source = low.dense(x)
        values, places = low.new(source.shape, x.ctype), low.new(source.shape, "int64_t")
        if not prod(source.shape):
            return [values, places]
        rank = len(source.shape)
        dim %= max(1, rank)
        n, inner = (source.shape[dim], prod(source.shape[dim + 1 :])) if rank else (1, 1)
        outer = prod(source.shape[:dim])
        low.call(
            f"for(int64_t o=0;o<{outer};o++) for(int64_t i=0;i<{inner};i++){{"
            f"const int64_t at=o*{n * inner}+i; {x.ctype} best={source.pointer}[at]; int64_t k=0;"
            f"for(int64_t j=0;j<{n};j++){{const {x.ctype} v={source.pointer}[at+j*{inner}];"
            f"if(v{sign}best||v!=v){{best=v;k=j;}}"
            f"{values.pointer}[at+j*{inner}]=best;{places.pointer}[at+j*{inner}]=k;}}}}",
            [source],
            [values, places],
        )
        return [values, places]

    return rule


lowers(aten.cummax.default)(_running_extreme(">="))
lowers(aten.cummin.default)(_running_extreme("<="))


@lowers(aten.logcumsumexp.default)
def _logcumsumexp(low: Lowering, x: Val, dim: int) -> BufVal:
    source = low.dense(x)
    made = low.new(source.shape, x.ctype)
    rank = len(source.shape)
    dim %= max(1, rank)
    n, inner = (source.shape[dim], prod(source.shape[dim + 1 :])) if rank else (1, 1)
    low.call(
        f"for(int64_t o=0;o<{prod(source.shape[:dim])};o++) for(int64_t i=0;i<{inner};i++){{"
        f"const int64_t at=o*{n * inner}+i; {x.ctype} sum={source.pointer}[at];"
        f"{made.pointer}[at]=sum;"
        f"for(int64_t j=1;j<{n};j++){{const {x.ctype} v={source.pointer}[at+j*{inner}];"
        f"sum=m_isinf(sum)&&sum<0?v:(m_isinf(v)&&v<0?sum:m_logaddexp(sum,v));"
        f"{made.pointer}[at+j*{inner}]=sum;}}}}",
        [source],
        [made],
    )
    return made
