"""Draws of globals and of rows of plates for ArviZ, in memory or part by part into a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.arviz._tree import Groups, build_tree, require_arviz
from pyro_nfvi.errors import MissingPackageError, OptionError


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
        store: A netCDF file (``.nc``), which is written part by part, whole or not at all.
        seed: Of the draws. The same seed gives the same; torch's own random state is left alone.
        memory: Bytes that the draws of one part may take, with ``store``.

    Returns:
        ``InferenceData`` or ``DataTree``; with ``store`` the file opened, its draws left in it.

    Cost:
        With ``store`` memory of one part, whatever the number of rows.

    Raises:
        OptionError: An unknown plate or row, labels of the wrong number, or a store of another
            kind.
        FileError: The folder is missing or read-only, or the disk is full; an earlier file of the
            name is as it was.
        MissingPackageError: ArviZ is not installed.
    """
    arviz, _ = require_arviz()
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
    if Path(store).suffix != ".nc":
        raise OptionError(
            f"store is a netCDF file, such as 'draws.nc'; got {os.fspath(store)!r}. For Zarr "
            "convert that: xarray.open_dataset(path, group='posterior', chunks={}).to_zarr(folder)."
        )
    with whole_file(store, "netCDF file") as draft:
        try:
            _write(draft, fit, parts, labels, num_samples)
        except RuntimeError as error:  # what HDF5 makes of a disk that is full
            number = re.search(r"errno = (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    return arviz.from_netcdf(os.fspath(store))


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
    path: str | os.PathLike[str],
    fit: RowDraws,
    parts: Iterator[tuple[str, TensorDict, TensorDict]],
    labels: Mapping[str, np.ndarray],
    num_samples: int,
) -> None:
    """Write the parts one after the other."""
    try:
        import h5netcdf
    except ImportError as error:
        raise MissingPackageError(
            "store=... needs h5netcdf, which is not installed: pip install 'pyro-nfvi[arviz]'"
        ) from error
    with h5netcdf.File(os.fspath(path), "w") as file:
        group = file.create_group("posterior")
        start: dict[str, int] = {}
        for number, (cut, rows, draws) in enumerate(parts):
            if not number:
                _declare(group, fit, cut, draws, labels, num_samples)
            length = len(rows[cut])
            begin = start.get(cut, 0)
            group.resize_dimension(cut, begin + length)
            for site in fit.latent.records:
                dims = _dims(site)
                if number and cut not in dims:
                    continue
                place: list[Any] = [0, slice(None)]
                place += [slice(begin, begin + length) if d == cut else slice(None) for d in dims]
                group.variables[site.name][tuple(place)] = draws[site.name].cpu().numpy()
            group.variables[cut][begin : begin + length] = _labels(cut, rows[cut], labels)
            for plate, index in rows.items():
                if not number and plate != cut:
                    group.variables[plate][:] = _labels(plate, index, labels)
            start[cut] = begin + length


def _declare(
    group: Any,
    fit: RowDraws,
    cut: str,
    draws: TensorDict,
    labels: Mapping[str, np.ndarray],
    num_samples: int,
) -> None:
    """Make the dimensions and variables of a file; the plate that is cut grows."""
    import h5py

    group.dimensions = {"chain": 1, "draw": num_samples}
    group.create_variable("chain", ("chain",), np.int64)[:] = [0]
    group.create_variable("draw", ("draw",), np.int64)[:] = np.arange(num_samples)
    sizes = {}
    for site in fit.latent.records:
        for dim, size in zip(_dims(site), draws[site.name].shape[1:]):
            sizes[dim] = int(size)
    for dim, size in sizes.items():
        group.dimensions[dim] = None if dim == cut else size
        words = dim in labels and labels[dim].dtype.kind in "UO"
        group.create_variable(dim, (dim,), h5py.string_dtype() if words else np.int64)
        if dim not in fit.plates:
            group.variables[dim][:] = np.arange(size)
    for site in fit.latent.records:
        dims = ("chain", "draw", *_dims(site))
        value = draws[site.name].cpu().numpy()
        group.create_variable(site.name, dims, value.dtype)
    group.attrs["inference_library"] = "pyro_nfvi"
