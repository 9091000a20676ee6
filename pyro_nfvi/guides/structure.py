"""Does the model still have the structure that the guide was built for?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace

from pyro_nfvi.latent import LatentSpace

__all__ = ["changed_structure", "signature"]

#: Nesting up to which arguments are looked into.
_DEPTH = 4
#: How many of a collection's items are looked at: data given as a long list costs no time.
_ITEMS = 100


def signature(value: Any, depth: int = _DEPTH) -> Hashable:
    """Summarise a model's arguments by what can change its structure: types, shapes, counts."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(int(size) for size in value.shape))
    if isinstance(value, (bool, int, str, type(None))):
        return value
    if depth and isinstance(value, Mapping):
        items = islice(value.items(), _ITEMS)
        return (len(value), *((str(key), signature(item, depth - 1)) for key, item in items))
    if depth and isinstance(value, Sequence):
        items = islice(value, _ITEMS)
        return (type(value).__name__, len(value), *(signature(item, depth - 1) for item in items))
    return (type(value).__name__, tuple(getattr(value, "shape", ())))


def changed_structure(space: LatentSpace, trace: Trace) -> str | None:
    """Say in words how a new trace of the model no longer fits the guide, or return None.

    Sites that the guide does not know are no change: they are observations that were left out,
    as in prediction.
    """
    for name, site in space.sites.items():
        node = trace.nodes.get(name)
        if node is None or node["type"] != "sample":
            return f"the latent site {name!r} is gone"
        if node["is_observed"]:
            return f"the latent site {name!r} is now observed"
        shape = tuple(node["value"].shape)
        if shape != site.shape:
            return f"the latent site {name!r} has shape {shape}, not {site.shape}"
    return None
