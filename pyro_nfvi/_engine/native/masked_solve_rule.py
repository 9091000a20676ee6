"""The rule of the operation that solves for the score of an autoregressive layer."""

from __future__ import annotations

import torch

from pyro_nfvi._engine.native.lowering import Lowering, lowers
from pyro_nfvi._engine.native.values import BufVal, LazyVal, Val
from pyro_nfvi._nn import masked_jacobian as masked_solve

#: Sizes of the work space of ``solve_masked`` in ``cpp/``: rows that it takes at a time, and
#: particles where these lie side by side.
_ROWS, _LANES = 4, 32
_MODULE = masked_solve  # it registers the operation


@lowers(torch.ops.pyro_nfvi.solve_masked.default)
def _solve_masked(
    low: Lowering,
    first: Val,
    last: Val,
    skip: Val,
    slope: Val,
    target: Val,
    dx: Val,
    dparams: Val,
    extra: Val,
    reverse: bool,  # noqa: FBT001
    block: int,
) -> BufVal:
    del block
    rows, dim = target.shape
    hidden, count = first.shape[0], dparams.shape[-1]
    if isinstance(first, BufVal):
        columns: Val = first.window(first.shape[::-1], first.strides[::-1])
    else:
        source = first
        columns = LazyVal(first.shape[::-1], first.ctype, lambda i: source.load(i[::-1]))
    weights = [low.dense(x) for x in (columns, last, skip)]
    rest = (slope, target, dx, dparams, extra)
    made = low.fresh((rows, dim), target.ctype)
    wide = not made.dense
    points = [low.laid_out(x) if wide else low.dense(x) for x in rest]
    room = _LANES * (hidden + dim + count) if wide else _ROWS * (hidden + dim)
    work = low.new((room,), target.ctype)
    name = f"solve_masked_wide<{target.ctype},{rows}>(" if wide else f"solve_masked({rows},"
    low.call(
        f"{name}{dim},{count},{hidden},"
        f"{','.join(x.pointer for x in (*weights, *points))},{'true' if reverse else 'false'},"
        f"{made.pointer},{work.pointer});",
        [*weights, *points],
        [made, work],
    )
    return made
