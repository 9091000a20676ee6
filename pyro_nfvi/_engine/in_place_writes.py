"""Operations in place, as operations that make a new value."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from pyro_nfvi._engine.available_operators import present
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten


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
    if name in ("pow_", "float_power_"):  # whose overloads have other names
        plain = not isinstance(args[1], torch.Tensor)
        packet = getattr(aten, name[:-1])
        return packet.Tensor_Scalar if plain else packet.Tensor_Tensor, args, kwargs
    if name == "copy_":
        return aten.copy.default, args[:2], {}
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    if packet is None or overload not in packet.overloads():
        raise Unsupported(f"{func} writes in place and has no other form")
    return getattr(packet, overload), args, kwargs


def undo_view(
    graph: Graph, func: Any, before: Node, now: Node, args: tuple[Any, ...], place: int | None
) -> Node:
    """Return the new value of ``before`` when its view through ``func`` is replaced by ``now``.

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
        node = graph.call_function(present(op), tuple(rest))
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
    if name == "index":
        return call(aten.index_put.default, before, args[0], now)
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


def as_simple_views(
    whole: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None
) -> list[tuple[Any, tuple[Any, ...]]] | None:
    """Write ``aten.as_strided`` of a contiguous tensor as views that :func:`undo_view` knows.

    Selections and slices where it is made of these, a slice with a step where it runs evenly
    through what is behind the first axes (a diagonal), else elements by their position.

    Returns:
        The operations with their arguments after the first; None where the tensor is not
        contiguous, or an element is met twice.

    Example:
        >>> import torch
        >>> [str(op) for op, _ in as_simple_views(torch.zeros(4, 4), [4], [5], 0)]
        ['aten.view.default', 'aten.slice.Tensor']
    """
    found = as_slices(whole, size, stride, offset)
    if found is not None or not whole.is_contiguous() or 0 in whole.shape:
        return found
    own = int(whole.storage_offset())
    start = (own if offset is None else offset) - own
    lead = 0
    while lead < min(len(size) - 1, whole.dim()) and (size[lead], stride[lead]) == (
        whole.shape[lead],
        whole.stride(lead),
    ):
        lead += 1
    rest = prod(whole.shape[lead:])
    if len(size) == lead + 1 and stride[lead] > 0:
        end = start + (size[lead] - 1) * stride[lead] + 1
        if 0 <= start and end <= rest:
            flat = [*whole.shape[:lead], rest]
            return [
                (aten.view.default, (flat,)),
                (aten.slice.Tensor, (lead, start, end, stride[lead])),
            ]
    places = torch.full(tuple(size), start, dtype=torch.int64, device=whole.device)
    for axis, (length, jump) in enumerate(zip(size, stride)):
        steps = jump * torch.arange(length, device=whole.device)
        places = places + steps.reshape(-1, *(1,) * (len(size) - axis - 1))
    if not places.numel() or places.unique().numel() < places.numel():
        return None
    if int(places.min()) < 0 or int(places.max()) >= whole.numel():
        return None
    return [(aten.view.default, ([whole.numel()],)), (aten.index.Tensor, ([places],))]


def as_slices(
    whole: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None
) -> list[tuple[Any, tuple[Any, ...]]] | None:
    """Write ``aten.as_strided`` of a contiguous tensor as selections and slices, if it is one.

    That is how autograd looks at what was written to in part.

    Example:
        >>> import torch
        >>> as_slices(torch.zeros(4, 3), [4], [3], 2)
        [(<OpOverload(op='aten.select', overload='int')>, (1, 2))]
    """
    if not whole.is_contiguous() or 0 in whole.shape:
        return None
    own = int(whole.storage_offset())
    rest = (own if offset is None else offset) - own
    if rest < 0:
        return None
    steps: list[tuple[Any, tuple[Any, ...]]] = []
    taken, dim = 0, 0
    for length, jump in zip(whole.shape, map(int, whole.stride())):
        start, rest = divmod(rest, jump)
        if start >= length:
            return None
        here = taken < len(size) and stride[taken] == jump and start + size[taken] <= length
        if here and not (size[taken] == 1 and len(size) - taken > whole.dim()):
            if (start, size[taken]) != (0, length):
                steps.append((aten.slice.Tensor, (dim, start, start + size[taken])))
            taken, dim = taken + 1, dim + 1
        else:
            steps.append((aten.select.int, (dim, start)))
    return steps if taken == len(size) and rest == 0 else None
