"""Rows of the data set of a PyTorch ``DataLoader``, fetched by number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_nfvi._pyro_model.batch_model import Call
from pyro_nfvi._pyro_model.stored_rows import _tensor, call_of
from pyro_nfvi.errors import OptionError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a map-style data set: item i is row i. Nothing is copied.

    The order of the loader has no say: rows are drawn by the stream of the fit.

    Attributes:
        num_rows: Number of all rows.
        batch_size: Rows of a batch of the loader.
    """

    num_rows: int
    batch_size: int
    _dataset: Any
    _collate: Callable[[Any], Any] | None

    @classmethod
    def of(cls, loader: DataLoader[Any], num_rows: int) -> DatasetRows | None:
        """Read a loader; None where its data set has no items by number.

        Raises:
            OptionError: The data set has another number of rows, or the loader draws some rows
                more often than others.
        """
        from torch.utils.data import IterableDataset, RandomSampler, WeightedRandomSampler

        sampler = loader.sampler
        dataset: Any = loader.dataset
        by_number = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if isinstance(dataset, IterableDataset) or not by_number:
            return None
        repeats = isinstance(sampler, RandomSampler) and sampler.replacement
        if repeats or isinstance(sampler, WeightedRandomSampler):
            raise OptionError(
                f"The loader's {type(sampler).__name__} draws some rows more often than others, "
                "which would be another posterior. Leave the sampler out: rows are drawn by the "
                "seed of the fit."
            )
        collate: Callable[[Any], Any] | None = loader.collate_fn
        if loader.batch_sampler is not None:
            size = loader.batch_size or len(next(iter(loader.batch_sampler)))
        else:
            first = next(iter(sampler), None)
            if not isinstance(first, Sequence | Tensor) or isinstance(first, str):
                return None  # items are batches
            size = len(first)
            dataset, collate = _WholeBatches(dataset, collate), None
        if len(loader.dataset) != num_rows:  # type: ignore[arg-type]
            count = len(loader.dataset)  # type: ignore[arg-type]
            raise OptionError(
                f"The loader's data set has {count} rows, and num_data={num_rows}. Pass "
                f"num_data={count}; for some of them torch.utils.data.Subset(dataset, indices)."
            )
        return cls(num_rows, min(int(size), num_rows), dataset, collate)

    @property
    def in_memory(self) -> bool:
        """True of a ``TensorDataset`` whose items nothing changes."""
        from torch.utils.data import TensorDataset, default_collate

        return type(self._dataset) is TensorDataset and self._collate is default_collate

    def batch(self, rows: Tensor) -> Call:
        """Return the arguments that hold the data of some rows."""
        dataset, collate = self._dataset, self._collate
        if self.in_memory:
            return call_of(tuple(tensor[rows] for tensor in dataset.tensors))
        index = rows.tolist()
        if isinstance(dataset, _WholeBatches):
            found = dataset(index)
        else:
            many = getattr(dataset, "__getitems__", None)
            items = many(index) if many is not None else [dataset[i] for i in index]
            found = items if collate is None else collate(items)
        return call_of(tree_map(_tensor, found))


@dataclass(frozen=True)
class _WholeBatches:
    """A data set that takes a list of numbers and returns a batch."""

    dataset: Any
    convert: Callable[[Any], Any] | None

    def __call__(self, index: list[int]) -> Any:
        found = self.dataset[index]
        return found if self.convert is None else self.convert(found)
