"""Properties of ATen operations, read from their schemas once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

#: Operations that hand a value to Python.
_READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "is_same_size"}
#: Operations with several outputs of which the schema calls each a view.
_DYNAMIC = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount"}


@dataclass(frozen=True)
class Traits:
    """Properties of an operation that a recording needs.

    Attributes:
        name: Its name without namespace and overload.
        writes: Places of the arguments that it writes to.
        view_of: Place of the argument whose memory its outputs share, or None.
        random: Whether it draws random numbers.
        reads: Whether it hands a value, or a shape that depends on values, to Python.
    """

    name: str
    writes: tuple[int, ...]
    view_of: int | None
    random: bool
    reads: bool


@cache
def traits_of(func: Any) -> Traits:
    """Look an operation up.

    Example:
        >>> import torch
        >>> traits_of(torch.ops.aten.select.int).view_of
        0
    """
    schema = func._schema
    writes, aliases = [], {}
    for place, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is None:
            continue
        if info.is_write:
            writes.append(place)
        for name in info.before_set:
            aliases[name] = place
    view_of = None
    if not writes:
        for result in schema.returns:
            info = result.alias_info
            if info is not None:
                view_of = next((aliases[n] for n in info.before_set if n in aliases), view_of)
        if view_of is None and aliases:
            view_of = next(iter(aliases.values()))  # lists of views: (a -> *)
    name = schema.name.split("::")[-1]
    return Traits(
        name,
        tuple(writes),
        view_of,
        torch.Tag.nondeterministic_seeded in func.tags,
        name in _READS or name in _DYNAMIC,
    )
