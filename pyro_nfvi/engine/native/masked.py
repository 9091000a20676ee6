"""The rule of the operation that solves for the score of an autoregressive layer."""

from __future__ import annotations

import torch

from pyro_nfvi import masked_solve
from pyro_nfvi.engine.native.lower import Lowering, lowers
from pyro_nfvi.engine.native.values import BufVal, LazyVal, Val

__all__: list[str] = []

#: Rows that the C++ takes at a time.
_ROWS = 4
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
    given = [low.dense(x) for x in (columns, last, skip, slope, target, dx, dparams, extra)]
    made = low.new((rows, dim), target.ctype)
    work = low.new((_ROWS * (hidden + dim),), target.ctype)
    low.call(
        f"solve_masked<{target.ctype}>({rows},{dim},{count},{hidden},"
        f"{','.join(x.pointer for x in given)},{'true' if reverse else 'false'},"
        f"{made.pointer},{work.pointer});",
        given,
        [made, work],
    )
    return made
