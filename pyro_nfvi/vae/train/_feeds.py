"""Batches of a training run: rows of tensors, or whatever a loader gives, in an order by seed."""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from pyro_nfvi._random import fold_in, seeded, stream
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae._pixels import Preparation

#: Images of a batch, and their labels where there are any.
Batch = tuple[Tensor, Tensor | None]

#: What a stream of random numbers is for.
ORDER, NOISE, PIXELS, VALID, NETS = range(5)


class Rows(ABC):
    """Images in batches. A position in an epoch is the number of its batch, so that a run goes on.

    Attributes:
        labelled: Give labels beside the images, where there are any.
        divided: Each process has batches of its own.
    """

    labelled: bool
    divided: bool = False

    @abstractmethod
    def shuffled(self, epoch: int, first: int, *, size: int, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``first`` on: a function of seed and epoch.

        Args:
            epoch: Number of the epoch, from 0.
            first: Batches to leave out.
            size: Images of a batch, where the rows are not in batches of their own.
            seed: Of order, and of what the data draw by themselves.
        """

    @abstractmethod
    def ordered(self, *, size: int, seed: int) -> Iterator[Batch]:
        """Yield all batches, the same ones each time."""

    @abstractmethod
    def length(self, size: int) -> int | None:
        """Return the number of batches of an epoch; None where it is not known beforehand."""

    @abstractmethod
    def smallest(self, size: int) -> int | None:
        """Return the number of images of the smallest batch; None where it is not known."""

    @abstractmethod
    def described(self, *, size: int, seed: int) -> str:
        """Return sizes and a checksum: a run goes on with the data that it began with."""


class TensorRows(Rows):
    """Rows of tensors.

    Args:
        x: Images ``(N, *shape)``.
        y: Labels ``(N,)``, or None.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        if not len(x):
            raise DataError("There are 0 images; at least one is needed.")
        if y is not None and len(y) != len(x):
            raise DataError(f"There are {len(y)} labels for {len(x)} images; each needs one.")
        self.x, self.y = x, y
        self.labelled = y is not None

    def __len__(self) -> int:
        return len(self.x)

    def shuffled(self, epoch: int, first: int, *, size: int, seed: int) -> Iterator[Batch]:
        order = torch.randperm(len(self.x), generator=stream(seed, ORDER, epoch))
        for start in range(first * size, len(order), size):
            rows = order[start : start + size].to(self.x.device)
            yield self.x[rows], None if self.y is None else self.y[rows.to(self.y.device)]

    def ordered(self, *, size: int, seed: int) -> Iterator[Batch]:
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield self.x[rows], None if self.y is None else self.y[rows]

    def length(self, size: int) -> int:
        return -(-len(self.x) // size)

    def smallest(self, size: int) -> int:
        return min(size, len(self.x) % size or size)

    def described(self, *, size: int, seed: int) -> str:
        parts = [self.x] if self.y is None else [self.x, self.y]
        sums = [_checksum(part) for part in parts]
        return (
            f"{tuple(self.x.shape)} {self.x.dtype}, contents {zlib.crc32(repr(sums).encode()):08x}"
        )


class LoaderRows(Rows):
    """Batches of a ``DataLoader``, or of any iterable of batches or function that makes one.

    Order, and whatever data sets and collate functions draw from torch, NumPy or ``random``, is
    a function of seed, epoch and batch. A loader's own generators are set by it too, and samplers
    that count epochs are told them. Batches of an epoch that are left out are read all the same.

    Args:
        loader: The loader.
        labelled: Give labels beside the images.

    Raises:
        OptionError: It is none, or it gives its batches once.
    """

    def __init__(self, loader: Any, *, labelled: bool = False) -> None:
        made = callable(loader) and not hasattr(loader, "__iter__")
        if not made and (not isinstance(loader, Iterable) or isinstance(loader, str | bytes)):
            raise OptionError(
                "Data are a tensor, a Dataset, a DataLoader, an iterable of batches or a function "
                f"without arguments that makes one; got {type(loader).__name__}."
            )
        if isinstance(loader, Iterator):
            raise OptionError(
                f"A {type(loader).__name__} gives its batches once, and a run needs them in every "
                "epoch. Pass a function that makes it: fit(vae, lambda: batches(...))."
            )
        self.loader, self.labelled = loader, labelled
        self.divided = isinstance(getattr(loader, "sampler", None), DistributedSampler)
        self._make: Callable[[], Iterable[Any]] = loader if made else lambda: loader

    def shuffled(self, epoch: int, first: int, *, size: int, seed: int) -> Iterator[Batch]:
        for name in ("sampler", "batch_sampler"):
            tell = getattr(getattr(self.loader, name, None), "set_epoch", None)
            if callable(tell):
                tell(epoch)
        return islice(self._batches(fold_in(seed, ORDER, epoch)), first, None)

    def ordered(self, *, size: int, seed: int) -> Iterator[Batch]:
        return self._batches(fold_in(seed, VALID))

    def _batches(self, seed: int) -> Iterator[Batch]:
        for place, generator in enumerate(self._generators()):
            generator.set_state(
                stream(seed, "generator", place, device=generator.device).get_state()
            )
        with _drawing(seed, "begin"):
            batches = iter(self._make())
        number = 0
        while True:
            with _drawing(seed, number):
                found = next(batches, None)
            if found is None:
                return
            yield self._pair(found)
            number += 1

    def _generators(self) -> list[torch.Generator]:
        """Return the generators of a loader and of its samplers, each once."""
        batches = getattr(self.loader, "batch_sampler", None)
        holders = (
            self.loader, getattr(self.loader, "sampler", None), batches,
            getattr(batches, "sampler", None),
        )  # fmt: skip
        found = {id(g): g for g in (getattr(one, "generator", None) for one in holders)}
        return [one for one in found.values() if isinstance(one, torch.Generator)]

    def _pair(self, batch: Any) -> Batch:
        """Take images and labels out of a batch."""
        parts: list[Any] = [batch]
        if isinstance(batch, Mapping) and "x" in batch:
            parts = [batch["x"], *([batch["y"]] if "y" in batch else [])]
        elif isinstance(batch, tuple | list) and batch:
            parts = list(batch)
        tensors = [torch.as_tensor(one) if _arrays(one) else None for one in parts[:2]]
        if tensors[0] is None or tensors[0].dim() < 2 or not len(tensors[0]):
            raise DataError(
                "A batch is a tensor of images (B, *shape), a pair of images and labels, or a "
                f"mapping with 'x' and 'y'; got {_words(batch)}. Give the loader a collate_fn, or "
                "wrap it: (x for _, x in loader) inside of a function."
            )
        if not self.labelled:
            return tensors[0], None
        if len(tensors) < 2 or tensors[1] is None:
            raise DataError(
                f"This VAE is conditional and needs labels beside the images; got {_words(batch)}."
            )
        return tensors[0], tensors[1]

    def length(self, size: int) -> int | None:
        try:
            return len(self.loader)
        except TypeError:
            return None

    def smallest(self, size: int) -> int | None:
        return None

    def described(self, *, size: int, seed: int) -> str:
        first = next(self._batches(fold_in(seed, ORDER, 0)), None)
        if first is None:
            raise DataError("The loader gave no batch. A function has to make a new iterable.")
        length = self.length(size)
        count = "batches" if length is None else f"{length} batches"
        return f"{count} like {tuple(first[0].shape[1:])}, contents {_checksum(first[0]):08x}"


@contextmanager
def _drawing(seed: int, *labels: int | str) -> Iterator[None]:
    """Put all global random states at the start of a stream; the caller's come back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    mixed = fold_in(seed, *labels)
    try:
        random.seed(mixed)
        np.random.seed(mixed % 2**32)  # noqa: NPY002
        with seeded(seed, *labels):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _arrays(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _words(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(map(_words, batch)) or 'nothing'}"
    shape = f" of shape {tuple(batch.shape)}" if _arrays(batch) else ""
    return f"{type(batch).__name__}{shape}"


def _checksum(x: Tensor) -> int:
    return zlib.crc32(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@dataclass(frozen=True)
class Feed:
    """Data of a run, to train and to validate on.

    Attributes:
        train: Images to train on, as the preparation wants them.
        valid: Images to validate on, prepared; None for none.
        preparation: How training images are drawn at each step; None where they are as they come.
    """

    train: Rows
    valid: Rows | None
    preparation: Preparation | None = None


def tensor_feed(
    train: Tensor,
    valid: Tensor,
    preparation: Preparation | None = None,
    labels: tuple[Tensor, Tensor] | None = None,
) -> Feed:
    """Make the feed of images in memory.

    Args:
        train: Images to train on, as the preparation wants them.
        valid: Images to validate on, prepared.
        preparation: How training images are drawn at each step.
        labels: Labels of train and valid, or None.
    """
    if len(train) == 0 or len(valid) == 0:
        raise DataError(
            f"There are {len(train)} images to train on and {len(valid)} to validate "
            "on; both need at least one."
        )
    first, second = (None, None) if labels is None else labels
    return Feed(TensorRows(train, first), TensorRows(valid, second), preparation)


def rows_of(data: Any, *, batch_size: int, labelled: bool, shuffle: bool = True) -> Rows:
    """Return the rows of whatever holds images.

    Args:
        data: A tensor or array ``(N, *shape)``, or a pair with labels; a ``Dataset``, a
            ``DataLoader``, an iterable of batches, or a function that makes one.
        batch_size: Images of a batch of a ``Dataset``.
        labelled: The VAE is conditional.
        shuffle: Images of a ``Dataset`` come in random order.

    Raises:
        DataError, OptionError: It holds none, or labels are missing.
    """
    if _arrays(data):
        data = (data,)
    if isinstance(data, tuple) and 0 < len(data) <= 2 and all(map(_arrays, data)):
        x, *rest = (torch.as_tensor(one) for one in data)
        if labelled and not rest:
            raise DataError("This VAE is conditional: pass the pair (images, labels).")
        return TensorRows(x, rest[0] if labelled else None)
    if isinstance(data, Dataset):
        stream_of = isinstance(data, IterableDataset)
        data = DataLoader(data, batch_size, shuffle=shuffle and not stream_of)
    return LoaderRows(data, labelled=labelled)
