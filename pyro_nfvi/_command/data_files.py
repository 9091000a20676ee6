"""Data of a model from a file: columns of a CSV file, or arrays of an npz file, by name."""

from __future__ import annotations

import csv
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._option_names import meant
from pyro_nfvi.errors import DataError, FileError, OptionError


def read_data(path: Path, integers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read the columns of a CSV file ``(N,)``, or the arrays of an npz file, by name.

    Floating-point numbers get torch's default dtype. Whole numbers of an npz file stay so; those of
    a CSV file do where they are named.

    Args:
        path: The file.
        integers: Columns of whole numbers, such as indices of groups.

    Raises:
        FileError: It cannot be read, or is of neither kind.
        DataError: A cell is no number, or a line has too few or too many.
    """
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {".csv": _csv, ".npz": _npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileError(f"{path} is neither .csv nor .npz. Write the data as one of these.")
    try:
        found = reader(path)
    except OSError as error:
        raise FileError(f"The data {path} cannot be read: {error.strerror or error}.") from error
    for name in integers:
        if name not in found:
            raise OptionError(
                f"--integers names {name!r}, which {path} has not.{meant(name, list(found))}"
            )
        whole = found[name]
        if bool((whole != whole.round()).any()):
            raise DataError(f"{path}: the column {name!r} of --integers has fractions.")
        found[name] = whole.long()
    dtype = torch.get_default_dtype()
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found.items()
    }


def _csv(path: Path) -> dict[str, Tensor]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            head, *lines = list(csv.reader(file)) or [[]]
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileError(f"{path} is no CSV file: {error}.") from error
    names = [name.strip() for name in head]
    lines = [line for line in lines if line]
    if not lines or not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"{path} is to have a line of names, each of them once, and lines of numbers below; "
            f"its first line is {head}."
        )
    columns: list[list[float]] = [[] for _ in names]
    for number, line in enumerate(lines, start=2):
        if len(line) != len(names):
            raise DataError(f"{path}, line {number}: {len(line)} cells for {len(names)} names.")
        for name, column, cell in zip(names, columns, line):
            column.append(_number(cell, f"{path}, line {number}, column {name!r}"))
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in zip(names, columns)}


def _number(cell: str, where: str) -> float:
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"{where}: {cell!r} is no number. Code categories as 0, 1, 2.") from None


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    found = {}
    try:
        with np.load(path, allow_pickle=False) as held:
            for name in held.files:
                array = held[name]
                if array.dtype.kind not in "fiub":
                    raise DataError(f"{path}: the array {name!r} is of {array.dtype}, no numbers.")
                found[name] = torch.as_tensor(
                    array.astype(np.int64) if array.dtype.kind in "iu" else array
                )
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise FileError(f"{path} is no npz file of plain arrays: {error}.") from error
    except Exception as error:
        if isinstance(error, (OSError, DataError)):
            raise
        raise FileError(f"{path} is no npz file: {error}.") from error
    if not found:
        raise DataError(f"{path} holds no arrays.")
    return found


def arguments_of(
    model: Callable[..., Any], data: Mapping[str, Tensor], columns: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Give a model's parameters the data of their names.

    Args:
        model: The model.
        data: Arrays by name.
        columns: Parameters that get several columns side by side ``(N, K)``, or one of another
            name.

    Returns:
        The arguments, and names of data that no parameter has.

    Raises:
        OptionError: A parameter without data and without a default, or a column that is not there.
    """
    parameters = inspect.signature(model).parameters
    named = {
        name: one
        for name, one in parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    rest = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name, wanted in columns.items():
        if name not in named and not rest:
            raise OptionError(
                f"--columns names {name!r}, which is no parameter of the model."
                f"{meant(name, list(named))}"
            )
        for column in wanted:
            if column not in data:
                raise OptionError(
                    f"--columns names the column {column!r}, which the data has not."
                    f"{meant(column, list(data))}"
                )
    taken = {column for wanted in columns.values() for column in wanted}
    found = {
        name: data[wanted[0]] if len(wanted) == 1 else torch.stack([data[c] for c in wanted], -1)
        for name, wanted in columns.items()
    }
    for name, one in named.items():
        if name in found:
            continue
        if name in data:
            found[name] = data[name]
            taken.add(name)
        elif one.default is one.empty:
            raise OptionError(
                f"The model's parameter {name!r} has no data: the file has {sorted(data)}."
                f"{meant(name, list(data))} Or give it columns: --columns {name}=first,second"
            )
    unused = sorted(set(data) - taken)
    if rest:
        found |= {name: data[name] for name in unused if name not in found}
        unused = []
    return found, unused
