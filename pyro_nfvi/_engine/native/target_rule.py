"""The call of a log density that was compiled apart."""

from __future__ import annotations

from pyro_nfvi._engine.native.expressions import ctype
from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.values import BufVal, Val
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._engine.target_call import TargetCall


@lowers(TargetCall)
def _call(low: Lowering, z: Val, *streams: Val) -> list[BufVal]:
    """Call the function of ``struct NfviTarget``, whatever it computes."""
    assert low.node is not None  # set before any rule runs
    assert isinstance(low.node.target, TargetCall)
    if not low.node.target.address:
        raise Unsupported("the log joint is not compiled")
    metas = low.node.meta["val"]
    rows = low.dense(z)
    given = [low.dense(x) for x in streams]
    made = [low.new(tuple(x.shape), ctype(x.dtype)) for x in metas]
    places = ",".join(f"(const void*){x.pointer}" for x in given)
    low.call(
        f"const void* s[]={{{places or '0'}}};(*(NfviTargetCall*)cx->target)"
        f"(cx->target,{rows.pointer},s,{rows.shape[0]},{made[0].pointer},{made[1].pointer});",
        [rows, *given],
        made,
    )
    return made
