"""Changes in the structure of a model for which a guide was built."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace

from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace, whole_value
from pyro_nfvi.guides._recipe import GUIDES


def signature(value: Any, depth: int = GUIDES.depth) -> Hashable:
    """Summarise a model's arguments by what can change its structure: types, shapes, counts."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(int(size) for size in value.shape))
    if isinstance(value, (bool, int, str, type(None))):
        return value
    if depth and isinstance(value, Mapping):
        items = islice(value.items(), GUIDES.items)
        return (len(value), *((str(key), signature(item, depth - 1)) for key, item in items))
    if depth and isinstance(value, Sequence):
        items = islice(value, GUIDES.items)
        return (type(value).__name__, len(value), *(signature(item, depth - 1) for item in items))
    if isinstance(value, torch.distributions.Distribution):
        return (type(value).__name__, tuple(value.batch_shape), tuple(value.event_shape))
    shape = getattr(value, "shape", ())  # of a class, or an object of the user's: anything
    return (type(value).__name__, tuple(shape) if isinstance(shape, Sequence) else ())


def changed_structure(
    space: LatentSpace,
    trace: Trace,
    hidden: Callable[[Any], bool] | None = None,
    free: frozenset[str] = frozenset(),
) -> str | None:
    """Say in words how a new trace of the model no longer fits the guide, or return None.

    Sites that the guide does not know are no change: they are observations that were left out,
    as in prediction. With ``hidden`` (whether a site is none of the guide's), which goes with the
    arguments of the set-up, they are one. Plates that are ``free`` may have other numbers of rows.
    """
    for name, site in space.sites.items():
        node = trace.nodes.get(name)
        if node is None or node["type"] != "sample":
            return f"the latent site {name!r} is gone"
        if node["is_observed"]:
            return f"the latent site {name!r} is now observed"
        shape = tuple(whole_value(node).shape)
        if not _fits(shape, site, free):
            return f"the latent site {name!r} has shape {shape}, not {site.shape}"
    if hidden is not None:
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and name not in space.sites and not hidden(node):
                return f"the latent site {name!r} is new"
    return None


def _fits(shape: tuple[int, ...], site: LatentSite, free: frozenset[str]) -> bool:
    """Tell whether a value has the shape of a site, up to the rows of free plates."""
    rows = {
        len(site.batch_shape) + frame.dim
        for frame in site.cond_indep_stack
        if frame.dim is not None and frame.name in free
    }
    if len(shape) != len(site.shape):
        return False
    return all(i in rows or n == m for i, (n, m) in enumerate(zip(shape, site.shape)))


class StructureWatch:
    """Looks at the model again now and then, and says what has changed.

    When its arguments have a new form, and at calls 1, 2, 4, 8, ... with the same form: a site
    that comes and goes by a global or by chance shows up soon, and the cost is a dozen runs.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, int] = {}
        self._first: Hashable = None

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Remember the arguments of the set-up."""
        self._first = signature((args, kwargs))
        self._calls = {self._first: 0}

    def changed(
        self,
        model: Callable[..., Any],
        space: LatentSpace,
        hidden: Callable[[Any], bool],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        free: frozenset[str] = frozenset(),
    ) -> str | None:
        """Count a call; where it is time, run the model and compare."""
        key = signature((args, kwargs))
        known = key in self._calls
        calls = self._calls.get(key, 0) + known
        if not known and len(self._calls) > GUIDES.most_forms:
            return None
        if known and (calls & (calls - 1) or calls > GUIDES.most_calls):
            self._calls[key] = calls
            return None
        device = space.init_loc.device
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices), poutine.block():
                trace = poutine.trace(model).get_trace(*args, **kwargs)
        except Exception:
            # A guide may be called without the model's arguments; what is wrong with the model
            # shows where it is run in earnest.
            self._calls[key] = calls
            return None
        found = changed_structure(space, trace, hidden if key == self._first else None, free)
        if found is None:
            # Counted only where nothing is wrong, so that the error comes again.
            self._calls[key] = calls
        return found
