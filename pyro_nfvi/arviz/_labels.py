"""Names for dimensions: plates give them to the sites that stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._pyro_model.model_run import is_deterministic

#: Names that ArviZ has given a meaning.
_RESERVED = {"chain", "draw", "sample"}


class Labels:
    """Dimension names and coordinates of a model's sites, read from one trace.

    A dimension that a plate owns has the plate's name; what is left is called
    ``<site>_dim_0``, ``<site>_dim_1`` and so on, counted over the event dimensions (all
    dimensions of a site without plates), as ArviZ does. A plate that has the name of a site
    appears as ``<plate>_plate``.

    Args:
        trace: One trace of the model.
        subsample: Indices of the plates that subsample.
    """

    def __init__(self, trace: Trace | None, subsample: Mapping[str, Any] | None = None) -> None:
        self._sites = {} if trace is None else _samples(trace)
        self._subsample = dict(subsample or {})
        self._sizes: dict[str, int] = {}
        for site in self._sites.values():
            for frame in site["cond_indep_stack"]:
                if frame.vectorized:
                    self._sizes[frame.name] = int(frame.size)

    def name_of(self, plate: str) -> str:
        """Name under which a plate appears."""
        return f"{plate}_plate" if plate in self._sites or plate in _RESERVED else plate

    def coords(self) -> dict[str, np.ndarray]:
        """Labels of the plates: the indices that were drawn where a plate subsamples."""
        return {
            self.name_of(plate): (
                np.asarray(self._subsample[plate]) if plate in self._subsample else np.arange(size)
            )
            for plate, size in self._sizes.items()
        }

    def site(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the dimensions of a site's value of this shape."""
        site = self._sites.get(name)
        if site is None:
            return _numbered(name, [None] * len(shape))
        event_dim = site["fn"].event_dim
        found = self._at(site, shape, event_dim)
        if event_dim and is_deterministic(site) and not any(found):
            # pyro.deterministic counts every dimension as event by default.
            found = self._at(site, shape, 0)
        return _numbered(name, found)

    def batch(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the dimensions of a site's log density, which has no event dimensions."""
        return _numbered(name, self._at(self._sites[name], shape, 0))

    def array(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the dimensions of an argument: after the one plate that has the size, if any."""
        found: list[str | None] = []
        for size in shape:
            same = [plate for plate, length in self._sizes.items() if length == size]
            named = self.name_of(same[0]) if len(same) == 1 and size > 1 else None
            found.append(None if named in found or named == name else named)
        return _numbered(name, found)

    def _at(
        self, site: Mapping[str, Any], shape: tuple[int, ...], event_dim: int
    ) -> list[str | None]:
        found: list[str | None] = [None] * len(shape)
        for frame in site["cond_indep_stack"]:
            position = len(shape) + frame.dim - event_dim if frame.vectorized else -1
            if 0 <= position < len(shape) and shape[position] == frame.size:
                found[position] = self.name_of(frame.name)
        return found


def _samples(trace: Trace) -> dict[str, Mapping[str, Any]]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _numbered(name: str, found: Iterable[str | None]) -> tuple[str, ...]:
    """Fill the gaps: ``<name>_dim_0`` and so on."""
    names, count = [], 0
    for dim in found:
        if dim is None:
            dim = f"{name}_dim_{count}"
            count += 1
        names.append(dim)
    return tuple(names)
