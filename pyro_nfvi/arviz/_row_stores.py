"""Stores that draws of rows are written to part by part: a netCDF file, a Zarr folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from pyro_nfvi._files.atomic_files import whole_file, whole_folder
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.arviz._tree import require_arviz
from pyro_nfvi.errors import MissingPackageError, OptionError

GROUP = "posterior"
#: Place of a part in an array, axis by axis.
Key = tuple["int | slice", ...]


class RowStore(Protocol):
    """One group of arrays with named dimensions, of which one may grow."""

    def __enter__(self) -> RowStore:
        """Open the store."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it; what was written is on the disk then."""

    def dimension(self, name: str, size: int, *, grows: bool = False) -> None:
        """Name a dimension: of so many numbers, or of so many in the first part."""

    def variable(self, name: str, dims: Sequence[str], dtype: np.dtype[Any]) -> None:
        """Make an array over dimensions; of words for a dtype of these."""

    def resize(self, name: str, size: int) -> None:
        """Let the dimension that grows have so many numbers."""

    def put(self, name: str, key: Key, value: np.ndarray) -> None:
        """Write a part of an array."""


@contextmanager
def open_store(path: str | os.PathLike[str]) -> Iterator[RowStore]:
    """Open a store of the kind that a name asks for: all of it appears at the end, or nothing.

    Raises:
        OptionError: The name ends neither in ``.nc`` nor in ``.zarr``.
        MissingPackageError: What writes it is not installed.
        FileError: It could not be written.
    """
    ending = Path(path).suffix
    if ending == ".nc":
        with whole_file(path, "netCDF file") as draft, _Netcdf(draft) as store:
            yield store
    elif ending == ".zarr":
        with whole_folder(path, "Zarr store") as draft, _Zarr(draft) as store:
            yield store
    else:
        raise OptionError(
            "store is a netCDF file, such as 'draws.nc', or a Zarr folder, such as 'draws.zarr'; "
            f"got {os.fspath(path)!r}."
        )


def read_store(path: str | os.PathLike[str]) -> Any:
    """Open a store for ArviZ, its draws left in it."""
    arviz, xarray = require_arviz()
    if Path(path).suffix == ".nc":
        return arviz.from_netcdf(os.fspath(path))
    # ArviZ before 1 has a reader of its own, for Zarr before 3 alone.
    found = xarray.open_zarr(os.fspath(path), group=GROUP, chunks=None)
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**{GROUP: found})
    return xarray.DataTree.from_dict({GROUP: found})


class _Watched:
    """A file that HDF5 writes to, which never tells it of an error.

    HDF5 ends the process where a write fails: its own books are then wrong. Here the first error is
    kept, whatever follows is dropped, and who writes looks at it.
    """

    def __init__(self, path: Path) -> None:
        # By descriptor: short writes are seen, and nothing is left in a buffer.
        self._file = open(path, "w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or drop it."""
        rest = memoryview(data).cast("B")
        count = len(rest)
        while self.error is None and len(rest):
            try:
                rest = rest[self._file.write(rest) or 0 :]
            except OSError as error:
                self.error = error
        return count

    def truncate(self, size: int) -> int:
        """Cut the file, or fill it up."""
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        return self._file.readinto(buffer) or 0

    def read(self, size: int = -1) -> bytes:
        """Read some bytes."""
        return self._file.read(size) or b""

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Netcdf:
    """A netCDF file, by HDF5."""

    def __init__(self, path: Path) -> None:
        try:
            import h5netcdf
        except ImportError as error:
            raise MissingPackageError(
                "store='....nc' needs h5netcdf, which is not installed: "
                "pip install 'pyro-nfvi[arviz]'"
            ) from error
        self._disk = _Watched(path)
        self._file = h5netcdf.File(self._disk, "w")
        self._group = self._file.create_group(GROUP)
        self._group.attrs["inference_library"] = "pyro_nfvi"

    def __enter__(self) -> _Netcdf:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._told():
                self._file.close()
        except OSError:
            if kind is None:
                raise
        finally:
            self._disk.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise the error of the disk, in place of what HDF5 makes of it or at the end."""
        try:
            yield
        except Exception as error:
            if self._disk.error is None:
                raise
            raise self._disk.error from error
        if self._disk.error is not None:
            raise self._disk.error

    def dimension(self, name: str, size: int, *, grows: bool = False) -> None:
        with self._told():
            self._group.dimensions[name] = None if grows else size

    def variable(self, name: str, dims: Sequence[str], dtype: np.dtype[Any]) -> None:
        import h5py

        words = dtype.kind in "UO"
        with self._told():
            self._group.create_variable(name, tuple(dims), h5py.string_dtype() if words else dtype)

    def resize(self, name: str, size: int) -> None:
        with self._told():
            self._group.resize_dimension(name, size)

    def put(self, name: str, key: Key, value: np.ndarray) -> None:
        with self._told():
            self._group.variables[name][key] = value


class _Zarr:
    """A Zarr folder of format 2, which Zarr 2 and 3 read, and xarray with either."""

    def __init__(self, path: Path) -> None:
        try:
            import zarr
        except ImportError as error:
            raise MissingPackageError(
                "store='....zarr' needs Zarr, which is not installed: pip install 'pyro-nfvi[zarr]'"
            ) from error
        self._path, self._zarr = os.fspath(path), zarr
        root = zarr.open_group(self._path, mode="w", zarr_format=2)
        self._group = root.create_group(GROUP, attributes={"inference_library": "pyro_nfvi"})
        self._sizes: dict[str, int] = {}
        self._grows = ""
        self._arrays: dict[str, tuple[tuple[str, ...], Any]] = {}

    def __enter__(self) -> _Zarr:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._zarr.consolidate_metadata(self._path, zarr_format=2)

    def dimension(self, name: str, size: int, *, grows: bool = False) -> None:
        self._sizes[name] = size
        if grows:
            self._grows = name

    def variable(self, name: str, dims: Sequence[str], dtype: np.dtype[Any]) -> None:
        shape = [self._sizes[dim] for dim in dims]
        chunks = [max(1, size) for size in shape]
        if self._grows in dims:
            axis = list(dims).index(self._grows)
            width = dtype.itemsize * int(np.prod([n for i, n in enumerate(chunks) if i != axis]))
            chunks[axis] = max(1, min(chunks[axis], RECIPE.chunk_bytes // max(1, width)))
        made = self._group.create_array(
            name,
            shape=tuple(shape),
            chunks=tuple(chunks),
            dtype=dtype,
            attributes={"_ARRAY_DIMENSIONS": list(dims)},
        )
        self._arrays[name] = (tuple(dims), made)

    def resize(self, name: str, size: int) -> None:
        self._sizes[name] = size
        for dims, array in self._arrays.values():
            if name in dims:
                array.resize(tuple(self._sizes[dim] for dim in dims))

    def put(self, name: str, key: Key, value: np.ndarray) -> None:
        self._arrays[name][1][key] = value
