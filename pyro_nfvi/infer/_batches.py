"""``run(loader, num_data=N)``: the model of a loader's mini-batches as one of numbered rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._pyro_model.batch_model import BatchModel, Call, RowSource
from pyro_nfvi._pyro_model.dataset_rows import DatasetRows
from pyro_nfvi._pyro_model.stored_rows import StoredRows, iterated
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.guides._model_plates import model_plates
from pyro_nfvi.infer._scopes import own_params


def is_loader_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether the arguments are a loader and the number of its rows, not the model's own.

    Example:
        >>> import torch
        >>> is_loader_call(([torch.zeros(2)],), {"num_data": 2})
        True
        >>> is_loader_call((torch.zeros(2),), {"num_data": 2})
        False
    """
    if "num_data" not in kwargs or not args:
        return False
    first = args[0]
    plain = isinstance(first, Tensor | np.ndarray | str | bytes | dict)
    return not plain and (isinstance(first, Iterable) or callable(first))


def enumerated(model: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the discrete sites of a model for enumeration."""
    if isinstance(model, BatchModel):
        return model.with_model(config_enumerate)
    marked: Callable[..., Any] = config_enumerate(model)
    return marked


@dataclass(frozen=True)
class _WithOthers:
    """Rows, and the arguments that come beside them."""

    source: RowSource
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return self.source.num_rows

    @property
    def batch_size(self) -> int:
        return self.source.batch_size

    @property
    def in_memory(self) -> bool:
        return self.source.in_memory

    def batch(self, rows: Tensor) -> Call:
        args, kwargs = self.source.batch(rows)
        return (*args, *self.args), {**kwargs, **self.kwargs}


class _Given(Messenger):
    """Notes the rows that a model gives its plates."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.rows[str(msg["name"])] = torch.as_tensor(msg["value"])


def by_batches(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[BatchModel, tuple[Any, ...], dict[str, Any]]:
    """Make the model of numbered rows, which is called without arguments.

    Args:
        model: The model.
        args: The loader, and what the model is given after each batch.
        kwargs: ``num_data``, and keyword arguments of the model.

    Raises:
        OptionError: The loader has another number of rows.
        ModelError: No plate of the model is that of the rows.
    """
    loader, *others = args
    num = whole("num_data", kwargs["num_data"])
    named = {name: value for name, value in kwargs.items() if name != "num_data"}
    if _takes(model, "num_data"):
        named["num_data"] = num
    source = _rows_of(loader, num)
    beside = _WithOthers(source, tuple(others), named)
    size = source.batch_size
    own_args, own_kwargs = beside.batch(torch.arange(size))
    given = _Given()
    with own_params(model, own_args, own_kwargs):
        found = model_plates(given(model), own_args, own_kwargs).sizes
    plates = [name for name, sizes in found.items() if sizes == (size, num)]
    if len(plates) != 1:
        raise ModelError(_no_plate(found, size, num, plates))
    (plate,) = plates
    if plate in given.rows and isinstance(source, StoredRows):
        source.number_by(given.rows[plate], plate)
    return BatchModel(model, beside, plate), (), {}


def _no_plate(
    found: dict[str, tuple[int, int]] | Any, size: int, num: int, plates: list[str]
) -> str:
    if plates:
        names = ", ".join(map(repr, plates))
        return (
            f"The plates {names} all have {size} of {num} rows, and a loader has the data of one: "
            "make one plate, rows = pyro.plate(...), and enter it as often as needed."
        )
    listed = ", ".join(f"{name!r} {rows} of {full}" for name, (rows, full) in found.items())
    return (
        f"No plate of the model has {size} of num_data={num} rows with the first batch of the "
        f"loader; there are {listed or 'none'}. Write the plate of the rows as pyro.plate(name, "
        f"{num}, subsample_size=len(batch)), so that a batch counts for all rows; or give it their "
        "numbers, subsample=index."
    )


def _rows_of(loader: Any, num: int) -> RowSource:
    from torch.utils.data import DataLoader

    if isinstance(loader, DataLoader):
        rows = DatasetRows.of(loader, num)
        if rows is not None:
            return rows
    try:
        batches = iterated(loader)
    except TypeError as error:
        raise OptionError(
            f"A loader is an iterable of batches, or a function without arguments that makes one; "
            f"got {type(loader).__name__} ({error})."
        ) from error
    return StoredRows.read(batches, num)


def _takes(model: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):
        return False
