"""Operations in place, as operations that make a new value."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from pyro_nfvi.engine.program import Unsupported

__all__ = ["out_of_place", "undo_view"]

aten = torch.ops.aten


def out_of_place(func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any, Any]:
    """The operation and arguments that compute what ``func`` writes into its first argument."""
    name, overload = func._schema.name.split("::")[-1], func._overloadname
    if name == "_index_put_impl_":
        return aten.index_put.default, args[:4], {}
    if name == "zero_":
        return aten.full_like.default, (args[0], 0), {}
    if name == "fill_":
        plain = not isinstance(args[1], torch.Tensor)
        if plain:
            return aten.full_like.default, (args[0], args[1]), {}
        return aten.fill.Tensor, args, {}
    if name == "copy_":
        return aten.copy.default, args[:2], {}
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    if packet is None or overload not in packet.overloads():
        raise Unsupported(f"{func} writes in place and has no other form")
    return getattr(packet, overload), args, kwargs


def undo_view(
    graph: Graph, func: Any, before: Node, now: Node, args: tuple[Any, ...], place: int | None
) -> Node:
    """What a value ``before`` becomes when its view through ``func`` becomes ``now``.

    Args:
        graph: The graph to add to.
        func: The view.
        before: The value that was looked at.
        now: The view's new value.
        args: Arguments of the view after the first.
        place: Which of several outputs.
    """
    shape = before.meta["val"].shape
    name = func._schema.name.split("::")[-1]
    padded = [*args, None, None, None]

    def call(op: Any, *rest: Any) -> Node:
        node = graph.call_function(op, tuple(rest))
        node.meta["val"] = before.meta["val"].contiguous()
        return node

    if name == "select":
        return call(aten.select_scatter.default, before, now, args[0], args[1])
    if name == "slice":
        given = [*args, *[0, None, None, 1][len(args) :]]
        return call(aten.slice_scatter.default, before, now, *given)
    if name == "diagonal":
        given = [*args, *[0, 0, 1][len(args) :]]
        return call(aten.diagonal_scatter.default, before, now, *given)
    if name == "unbind":
        return call(aten.select_scatter.default, before, now, padded[0] or 0, place)
    if name in ("view", "_unsafe_view", "unsqueeze", "squeeze"):
        return call(aten.reshape.default, now, list(shape))
    if name == "t":
        return call(aten.t.default, now)
    if name == "transpose":
        return call(aten.transpose.int, now, args[0], args[1])
    if name == "permute":
        dims = [dim % len(shape) for dim in args[0]]
        return call(aten.permute.default, now, [dims.index(i) for i in range(len(dims))])
    raise Unsupported(f"a value is written in place through {func}")
