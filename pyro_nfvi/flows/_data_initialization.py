"""Normalising layers inside a flow, set from data that pass through it to the base."""

from __future__ import annotations

from torch import Tensor

from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._normalization import ActNorm, BatchNorm


def normalise(flow: Flow, y: Tensor, context: Tensor | None, what: str) -> None:
    """Pass data through a flow to its base, setting or updating its normalising layers.

    Args:
        flow: The flow.
        y: Data ``(n, D)`` in the space of y.
        context: Its context, or None.
        what: ``"initialise"`` sets each :class:`ActNorm` that is at its start, ``"update"`` moves
            the statistics of each :class:`BatchNorm` alone.
    """
    for layer in reversed(flow.layers()):
        part, finite = layer.flow, bool(y.isfinite().all())
        if isinstance(part, ActNorm) and what == "initialise":
            numbers = (part.mean, part.std - 1, part.loc, part.log_scale)
            untouched = not any(bool(number.any()) for number in numbers)
            if untouched and finite and len(y) > 1:
                part.initialize(y, inverse=layer.inverted)
        if isinstance(part, BatchNorm) and finite:
            part.update(y, inverse=layer.inverted)
        y = layer.map.inverse(y, context if part.context_dim else None)[0]
