"""Draws of globals and of rows of plates for ArviZ, in memory or part by part into a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.arviz._row_stores import RowStore, open_store, read_store
from pyro_nfvi.arviz._tree import Groups, build_tree, require_arviz
from pyro_nfvi.errors import OptionError


class RowDraws(Protocol):
    """A fit that draws rows part by part."""

    @property
    def latent(self) -> LatentSpace:
        """The latent sites of all rows."""

    @property
    def plates(self) -> dict[str, int]:
        """Number of rows of each plate."""

    def draw_parts(
        self, num_samples: int, rows: Any, seed: int | None, numbers: int
    ) -> Iterator[tuple[str, TensorDict, TensorDict]]:
        """Yield the plate that is cut, the rows of each part, and draws of its sites."""


def _dims(site: LatentSite) -> tuple[str, ...]:
    """Name the dimensions of a site: plates by their names, others after the site."""
    names = [f"{site.name}_dim_{place}" for place in range(len(site.shape))]
    for frame in site.cond_indep_stack:
        if frame.vectorized:
            names[len(site.batch_shape) + frame.dim] = str(frame.name)
    return tuple(names)


def rows_to_arviz(
    fit: RowDraws,
    *,
    num_samples: int = 1000,
    rows: Mapping[str, Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    seed: int = 0,
    memory: int = RECIPE.store_bytes,
) -> Any:
    """Convert a fit of rows for ArviZ: the group ``posterior``, with rows along their plates.

    Args:
        fit: The fit.
        num_samples: Number of draws.
        rows: For some plates the rows; of the others all.
        coords: Labels of the rows of a plate, one for each of all its rows; by default numbers.
        store: A netCDF file (``.nc``) or a Zarr folder (``.zarr``), which is written part by part,
            whole or not at all. A file of the name is replaced, a folder is not.
        seed: Of the draws. The same seed gives the same; torch's own random state is left alone.
        memory: Bytes that the draws of one part may take, with ``store``.

    Returns:
        ``InferenceData`` or ``DataTree``; with ``store`` the file opened, its draws left in it.

    Cost:
        With ``store`` memory of one part, whatever the number of rows.

    Raises:
        OptionError: An unknown plate or row, labels of the wrong number, or a store of another
            kind.
        FileError: The folder is missing or read-only, there is a Zarr folder of this name, or the
            disk is full; an earlier file of the name is as it was.
        MissingPackageError: ArviZ is not installed, or what writes the store.
    """
    require_arviz()
    labels = {plate: np.asarray(found) for plate, found in (coords or {}).items()}
    for plate, found in labels.items():
        if plate not in fit.plates or len(found) != fit.plates[plate]:
            sizes = ", ".join(f"{size} for {name!r}" for name, size in fit.plates.items())
            raise OptionError(
                f"coords gives {len(found)} labels for {plate!r}; expected one for each row of a "
                f"plate: {sizes}."
            )
    numbers = max(1, memory // RECIPE.bytes_of_number)
    parts = fit.draw_parts(num_samples, rows, seed, numbers)
    if store is None:
        return build_tree(_gathered(fit, list(parts), labels))
    with open_store(store) as kept:
        _write(kept, fit, parts, labels, num_samples)
    return read_store(store)


def _labels(plate: str, index: Tensor, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    numbers = index.cpu().numpy()
    return labels[plate][numbers] if plate in labels else numbers


def _gathered(
    fit: RowDraws,
    parts: Sequence[tuple[str, TensorDict, TensorDict]],
    labels: Mapping[str, np.ndarray],
) -> Groups:
    """Put the parts together."""
    groups = Groups()
    for site in fit.latent.records:
        dims, cut = _dims(site), parts[0][0]
        arrays = [draws[site.name].cpu().numpy() for _, _, draws in parts]
        if cut in dims:
            array = np.concatenate(arrays, 1 + dims.index(cut))
        else:
            array = arrays[0]
        groups.add("posterior", site.name, dims, array[None])
    for plate in parts[0][1]:
        pieces = [rows[plate] for _, rows, _ in parts]
        if plate != parts[0][0]:
            pieces = pieces[:1]
        groups.coords[plate] = np.concatenate([_labels(plate, one, labels) for one in pieces])
    return groups


def _write(
    store: RowStore,
    fit: RowDraws,
    parts: Iterator[tuple[str, TensorDict, TensorDict]],
    labels: Mapping[str, np.ndarray],
    num_samples: int,
) -> None:
    """Write the parts one after the other."""
    begin = 0
    for number, (cut, rows, draws) in enumerate(parts):
        if not number:
            _declare(store, fit, cut, draws, labels, num_samples)
        stop = begin + len(rows[cut])
        store.resize(cut, stop)
        for site in fit.latent.records:
            dims = _dims(site)
            if number and cut not in dims:
                continue
            place = (slice(begin, stop) if dim == cut else slice(None) for dim in dims)
            store.put(site.name, (0, slice(None), *place), draws[site.name].cpu().numpy())
        store.put(cut, (slice(begin, stop),), _labels(cut, rows[cut], labels))
        for plate, index in rows.items():
            if not number and plate != cut:
                store.put(plate, (slice(None),), _labels(plate, index, labels))
        begin = stop


def _declare(
    store: RowStore,
    fit: RowDraws,
    cut: str,
    draws: TensorDict,
    labels: Mapping[str, np.ndarray],
    num_samples: int,
) -> None:
    """Make the dimensions and variables of a store; the plate that is cut grows."""
    sizes = {"chain": 1, "draw": num_samples}
    for site in fit.latent.records:
        for dim, size in zip(_dims(site), draws[site.name].shape[1:]):
            sizes[dim] = int(size)
    for dim, size in sizes.items():
        store.dimension(dim, size, grows=dim == cut)
        store.variable(dim, (dim,), labels[dim].dtype if dim in labels else np.dtype(np.int64))
        if dim not in fit.plates:
            store.put(dim, (slice(None),), np.arange(size))
    for site in fit.latent.records:
        value = draws[site.name].cpu().numpy()
        store.variable(site.name, ("chain", "draw", *_dims(site)), value.dtype)
