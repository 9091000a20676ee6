"""Rows of data from tables of other libraries: pandas, polars, xarray, NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi.errors import DataError


def rows_of(x: Any, what: str = "the data") -> Tensor:
    """Return a table as a tensor: a tensor as it is, others in their own floating type.

    Args:
        x: A tensor, an array, a data frame of pandas or polars, or an ``xarray.DataArray``; a
            ``Dataset`` of vectors gives a column for each.
        what: What it is, for messages.

    Raises:
        DataError: Columns that are no numbers, or a table of another kind.

    Example:
        >>> rows_of([[1.0, 2.0], [3.0, 4.0]]).shape
        torch.Size([2, 2])
    """
    if isinstance(x, Tensor):
        return x
    if hasattr(x, "data_vars"):  # a Dataset
        x = np.stack([np.asarray(x[name].values) for name in x.data_vars], -1)
    if hasattr(x, "to_numpy"):
        x = x.to_numpy()
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{what.capitalize()} are no table of numbers: {error}.") from error
    if array.dtype.kind == "O":  # numbers among others, or numbers that pandas may lack
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{what.capitalize()} hold something else than numbers: {error}. Code categories "
                "as numbers, or leave them out."
            ) from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what.capitalize()} are of {array.dtype}, which are no numbers. Code categories as "
            "numbers, or leave them out."
        )
    return torch.from_numpy(np.array(array))  # a copy: what torch shares, it may change
