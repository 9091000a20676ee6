"""A model of mini-batches that come from outside, as a model of numbered rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message, effectful
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._compat import is_watched
from pyro_nfvi.errors import ModelError

#: Positional and keyword arguments of a model.
Call: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
#: Mark of plates whose rows were drawn before the data were fetched.
DRAWN = "_nfvi_drawn"
#: Reason for which a step or a log joint of such data is not compiled.
CHANGING = "the data of each step come from a loader, and are no tensors in memory"


class RowSource(Protocol):
    """Data of numbered rows, of which any can be had."""

    @property
    def num_rows(self) -> int:
        """Number of all rows."""

    @property
    def batch_size(self) -> int:
        """Number of rows of a mini-batch."""

    @property
    def in_memory(self) -> bool:
        """True where a batch is gathered from tensors by its rows, and by nothing else."""

    def batch(self, rows: Tensor) -> Call:
        """Return the arguments that hold the data of some rows."""


@effectful(type="nfvi_rows")
def _rows_of_run(count: int) -> Tensor:
    """Return the rows of this run of the model: those that a handler has set, or the first."""
    return torch.arange(count)


class _Fetched(Messenger):
    """Has a plate take the rows whose data were fetched."""

    def __init__(self, plate: str, rows: Tensor) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] != self.plate or not site_is_subsample(msg):
            return
        given = msg["value"]
        # What records operations takes no branch on numbers; runs beside it have looked.
        if given is not None and not is_watched():
            told = torch.as_tensor(given).to(self.rows)
            if told.shape != self.rows.shape or not torch.equal(told, self.rows):
                wrong = next((i for i, (a, b) in enumerate(zip(told, self.rows)) if a != b), 0)
                raise ModelError(
                    f"The data of row {int(self.rows[wrong])} of the plate {self.plate!r} say that "
                    f"they are of row {int(told[wrong])}: item i of the loader's data set has to "
                    "be row i. Number the rows by their places in the data set; or pass an "
                    "iterable of batches, whose rows may come in any order."
                )
        msg["value"] = self.rows
        assert msg["infer"] is not None
        msg["infer"][DRAWN] = True


@dataclass(frozen=True, eq=False)
class BatchModel:
    r"""A model that is called with the data of the rows that its plate has in this run.

    The rows are drawn first, by whoever runs the model (a handler that sets the rows of the plate);
    their data are fetched, and the user's model is called with them. Called with arguments, it
    is the user's model.

    Attributes:
        model: The user's model.
        source: The data.
        plate: The plate whose rows they are.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.stored_rows import StoredRows
        >>> def model(y):
        ...     with pyro.plate("rows", 4, subsample_size=len(y)):
        ...         return pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        >>> source = StoredRows.read([torch.arange(2.0), torch.arange(2.0, 4.0)], 4)
        >>> BatchModel(model, source, "rows")()
        tensor([0., 1.])
    """

    model: Callable[..., Any]
    source: RowSource
    plate: str
    _last: list[tuple[Tensor, Call]] = field(default_factory=list, repr=False)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The user's model, for what looks at modules and signatures."""
        return self.model

    @property
    def changing(self) -> bool:
        """True where the data of each run come from outside of what compiled code can see."""
        return not self.source.in_memory

    @property
    def __name__(self) -> str:
        """Name of the user's model."""
        return str(getattr(self.model, "__name__", type(self.model).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return self.model(*args, **kwargs)
        rows = _rows_of_run(self.source.batch_size, name=self.plate).cpu()
        args, kwargs = self.batch(rows)
        with _Fetched(self.plate, rows):
            return self.model(*args, **kwargs)

    def batch(self, rows: Tensor | None) -> Call:
        """Return the arguments that hold the data of some rows; of all for None.

        The last ones are kept: guide and model ask for the same. Where data are gathered from
        tensors in memory they are gathered again, so that compiled code can do it.
        """
        rows = torch.arange(self.source.num_rows) if rows is None else rows.cpu()
        if self.source.in_memory:
            return self.source.batch(rows)
        for known, call in self._last:
            if torch.equal(known, rows):
                return call
        call = self.source.batch(rows)
        self._last[:] = [(rows, call)]
        return call

    def with_model(self, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> BatchModel:
        """Return the same for a changed model."""
        return replace(self, model=change(self.model))


def drawn_plates(trace: Trace) -> dict[str, tuple[int, int]]:
    """Return the plates of a run whose rows are drawn: of how many, and how many."""
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            size, count = site["fn"].size, site["fn"].subsample_size
            if (site["infer"] or {}).get(DRAWN):
                count = len(site["value"])
            if count is not None and count < size:
                found[name] = (int(size), int(count))
    return found


def batch_arguments(model: Any, rows: Mapping[str, Tensor]) -> Call:
    """Return the arguments of a model at some rows of its plates; none of an ordinary model."""
    if not isinstance(model, BatchModel):
        return (), {}
    return model.batch(rows.get(model.plate))
