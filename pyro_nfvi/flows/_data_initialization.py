"""Normalising layers inside a flow, set from data that walk through it to the base."""

from __future__ import annotations

from torch import Tensor

from pyro_nfvi.flows._base import Chain, Flow, Inverse
from pyro_nfvi.flows._normalization import ActNorm, BatchNorm


def normalise(
    flow: Flow, y: Tensor, context: Tensor | None, what: str, *, inverse: bool = False
) -> Tensor:
    """Walk data through a flow to its base, setting or updating its normalising layers.

    Args:
        flow: The flow.
        y: Data ``(n, D)`` in the space of y.
        context: Its context, or None.
        what: ``"initialise"`` sets each :class:`ActNorm` that is at its start, ``"update"`` moves
            the statistics of each :class:`BatchNorm` alone.
        inverse: The flow stands inside an ``Inverse``: its forward direction is the way.
    """
    given = context if flow.context_dim else None
    if isinstance(flow, Inverse):
        return normalise(flow.flow, y, context, what, inverse=not inverse)
    if isinstance(flow, Chain):
        members = list(flow.flows)
        for member in members if inverse else reversed(members):
            assert isinstance(member, Flow)
            y = normalise(member, y, given, what, inverse=inverse)
        return y
    finite = bool(y.isfinite().all())
    if isinstance(flow, ActNorm) and what == "initialise":
        numbers = (flow.mean, flow.std - 1, flow.loc, flow.log_scale)
        untouched = not any(bool(number.any()) for number in numbers)
        if untouched and finite and len(y) > 1:
            flow.initialize(y, inverse=inverse)
    if isinstance(flow, BatchNorm) and finite:
        flow.update(y, inverse=inverse)
    return (flow if inverse else flow.inverse)(y, given)[0]
