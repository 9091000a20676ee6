"""Rows of an iterable of batches, read once and kept by number, in memory or in a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyro_nfvi._pyro_model.batch_model import Call
from pyro_nfvi._pyro_model.recipe import ROWS
from pyro_nfvi.errors import DataError, FileError, OptionError

_ONCE = (
    "A generator can be read once: pass a function that makes it, run(make_batches, "
    "num_data=...), or a list."
)


@dataclass(eq=False)
class _Column:
    """One tensor of the batches: its rows as bytes, by number."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: np.ndarray
    file: Any = None
    held: Tensor | None = None

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return int(self.rows.shape[1])

    def write(self, start: int, part: Tensor) -> None:
        """Write rows from a place on."""
        flat = part.detach().cpu().contiguous().reshape(len(part), -1)
        held = flat.view(torch.uint8).numpy() if flat.numel() else np.empty((len(part), 0), "u1")
        if self.file is None:
            self.rows[start : start + len(part)] = held
        else:  # by write, not by the map: a full disk is an error there, and ends the process here
            self.file.seek(start * self.width)
            self.file.write(held.tobytes())

    def take(self, rows: Tensor) -> Tensor:
        """Return some rows, copied."""
        if self.held is not None:
            return self.held[rows]
        held = torch.from_numpy(self.rows[rows.numpy()])
        if not self.width:
            return torch.empty((len(rows), *self.shape), dtype=self.dtype)
        return held.view(self.dtype).reshape(len(rows), *self.shape)


@dataclass(eq=False)
class StoredRows:
    """Rows of batches, numbered in the order in which they came, or as the batches say.

    Batches are tensors or arrays, or tuples, lists and dictionaries of them, with the rows on the
    leading axis; what has no rows has to be the same in all.

    Attributes:
        num_rows: Number of all rows.
        batch_size: Rows of the first batch.

    Example:
        >>> import torch
        >>> kept = StoredRows.read([torch.arange(3), torch.arange(3, 5)], 5)
        >>> kept.batch(torch.tensor([4, 0]))
        ((tensor([4, 0]),), {})
    """

    num_rows: int
    batch_size: int
    _spec: TreeSpec
    _columns: list[_Column | None]
    _shared: list[Any]
    _places: Tensor | None = None
    _folder: str = field(default="", repr=False)

    @classmethod
    def read(cls, batches: Iterable[Any], num_rows: int) -> StoredRows:
        """Read batches until all rows have come.

        Args:
            batches: The batches.
            num_rows: Number of all rows.

        Cost:
            One pass. Rows beyond ``ROWS.memory`` bytes go to a file in the folder of temporary
            files (``TMPDIR``), which goes with the object.

        Raises:
            OptionError: There are fewer rows or more; or batches are of different kinds.
            FileError: The disk of temporary files is full.
        """
        made: StoredRows | None = None
        done = 0
        try:
            for number, batch in enumerate(batches):
                leaves, spec = tree_flatten(batch)
                leaves = [_tensor(leaf) for leaf in leaves]
                size = _length(leaves)
                if made is None:
                    made = cls._begin(leaves, spec, size, num_rows)
                if done + size > num_rows:
                    raise OptionError(
                        f"The loader gives more than num_data={num_rows} rows: {done + size} after "
                        f"batch {number}. Pass the number of all rows as num_data; of an endless "
                        "stream the first rows, itertools.islice(stream, count)."
                    )
                made._add(leaves, spec, done, size, number)
                done += size
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(
                f"The rows of the loader could not be kept in {tempfile.gettempdir()}: "
                f"{error.strerror or error}, after {done} of {num_rows} rows. Set TMPDIR to a "
                "folder with more space; or pass a DataLoader over a map-style data set, of which "
                "nothing is copied."
            ) from error
        finally:
            for column in () if made is None else made._columns:
                if column is not None and column.file is not None:
                    column.file.close()
        if made is None:
            raise OptionError(f"The loader gave no batch. {_ONCE}")
        if done < num_rows:
            raise OptionError(
                f"The loader gave {done} rows, and num_data={num_rows}. Pass the number of all "
                f"rows. {_ONCE}"
            )
        made._finish()
        return made

    @classmethod
    def _begin(cls, leaves: list[Any], spec: TreeSpec, size: int, num_rows: int) -> StoredRows:
        rows = [leaf if _has_rows(leaf, size) else None for leaf in leaves]
        total = num_rows * sum(x[0].numel() * x.element_size() for x in rows if x is not None)
        folder = tempfile.mkdtemp(prefix="nfvi-rows-") if total > ROWS.memory else ""
        made = cls(num_rows, size, spec, [], list(leaves), _folder=folder)
        if folder:
            weakref.finalize(made, _remove, folder)
        for number, leaf in enumerate(rows):
            if leaf is None:
                made._columns.append(None)
                continue
            width = leaf[0].numel() * leaf.element_size()
            file = open(os.path.join(folder, str(number)), "w+b") if folder else None
            held = np.empty((0 if folder else num_rows, width), np.uint8)
            made._columns.append(_Column(leaf.dtype, tuple(leaf.shape[1:]), held, file))
            made._shared[number] = None
        return made

    def _add(self, leaves: list[Any], spec: TreeSpec, start: int, size: int, number: int) -> None:
        if spec != self._spec:
            raise OptionError(
                f"Batch {number} of the loader is built otherwise than the first: {spec}, not "
                f"{self._spec}. Give batches of one form."
            )
        for leaf, column, shared in zip(leaves, self._columns, self._shared):
            if column is None:
                if not _same(leaf, shared):
                    raise OptionError(
                        f"A part of batch {number} of the loader has no row for each of its {size} "
                        "rows, and is another one than in the first batch. Give data with the rows "
                        "on the leading axis, and what all rows share as further arguments: "
                        "run(loader, shared, num_data=...)."
                    )
                continue
            fits = isinstance(leaf, Tensor) and leaf.dtype == column.dtype and leaf.dim()
            if not fits or tuple(leaf.shape) != (size, *column.shape):
                came = f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else leaf
                raise OptionError(
                    f"Batch {number} of the loader has {came} where the first has {column.dtype} "
                    f"of rows {column.shape}. Give rows of one shape and type."
                )
            column.write(start, leaf)

    def _finish(self) -> None:
        for column in self._columns:
            if column is not None and column.file is not None:
                width = column.width
                column.rows = np.memmap(column.file.name, np.uint8, "r").reshape(-1, width)
                column.file = None
            elif column is not None and column.width:
                whole = torch.from_numpy(column.rows).view(column.dtype)
                column.held = whole.reshape(len(column.rows), *column.shape)

    @property
    def in_memory(self) -> bool:
        """True where no row is in a file, so that each part of a batch is gathered by index."""
        return all(column is None or column.held is not None for column in self._columns)

    def batch(self, rows: Tensor) -> Call:
        """Return the arguments that hold the data of some rows."""
        places = rows if self._places is None else self._places[rows]
        leaves = [
            shared if column is None else column.take(places)
            for column, shared in zip(self._columns, self._shared)
        ]
        return call_of(tree_unflatten(leaves, self._spec))

    def number_by(self, told: Tensor, plate: str) -> None:
        """Number the rows by one of their columns, that of which ``told`` is the first batch.

        Args:
            told: Numbers of the rows of the first batch, as the model gave them to its plate.
            plate: The plate.

        Raises:
            DataError: A row comes twice, and so another one never; or a number is out of range.
        """
        first = torch.arange(len(told))
        for column in self._columns:
            if column is None or column.shape not in ((), (1,)) or column.dtype.is_floating_point:
                continue
            if torch.equal(column.take(first).reshape(-1).long(), told.cpu().reshape(-1).long()):
                numbers = column.take(torch.arange(self.num_rows)).reshape(-1).long()
                outside = (numbers < 0) | (numbers >= self.num_rows)
                if bool(outside.any()):
                    wrong = int(numbers[outside][0])
                    raise DataError(
                        f"A batch of the loader names row {wrong} of the plate {plate!r}, which "
                        f"has the rows 0 to {self.num_rows - 1}."
                    )
                counts = torch.bincount(numbers, minlength=self.num_rows)
                if bool((counts != 1).any()):
                    raise DataError(
                        f"Row {int((counts > 1).nonzero()[0])} of the plate {plate!r} comes twice "
                        f"in the loader, and row {int((counts == 0).nonzero()[0])} never. Give "
                        "each row once: a sampler without replacement."
                    )
                self._places = numbers.argsort()
                return
        if not torch.equal(told.cpu().long(), first):
            raise DataError(
                f"The model gives the plate {plate!r} rows that are in no part of the batch. Have "
                "the batches carry the numbers of their rows, and pass these on: "
                f"pyro.plate({plate!r}, size, subsample=index)."
            )


def _remove(folder: str) -> None:
    """Remove the files of rows, and their folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def call_of(batch: Any, others: tuple[Any, ...] = ()) -> Call:
    """Return a batch as arguments of a model: a tuple's or list's one by one, a mapping's by name.

    Example:
        >>> call_of((1, 2)), call_of({"x": 1}), call_of(3)
        (((1, 2), {}), ((), {'x': 1}), ((3,), {}))
    """
    if isinstance(batch, Mapping):
        return others, {str(name): value for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return (*batch, *others), {}
    return (batch, *others), {}


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        return torch.from_numpy(np.array(leaf))  # a copy: it may be a map of a file, read-only
    return leaf


def _length(leaves: list[Any]) -> int:
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
            raise OptionError("A batch of the loader is sparse. Give it as x.to_dense().")
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf):
            return len(leaf)
    kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
    raise OptionError(
        f"A batch of the loader holds no tensor with rows on its leading axis: {kinds}. Give "
        "batches as tensors or arrays, or tuples and dictionaries of these."
    )


def _has_rows(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    try:
        return bool(one == other)
    except Exception:  # a user's own class
        return one is other


def iterated(loader: Any) -> Iterator[Any]:
    """Return an iterator of batches, of an iterable or of what makes one."""
    return iter(loader() if callable(loader) and not hasattr(loader, "__iter__") else loader)
