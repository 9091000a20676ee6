"""Messages between the processes of one fit: told by the first one, or summed over all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pyro_nfvi._processes.recipe import WAITS


class ProcessLost(BaseException):
    """One of the processes is gone. No exception of a model, for which there are other ways."""


@contextmanager
def talking() -> Iterator[None]:
    """Tell an operation between processes that fails as the loss of one of them.

    Raises:
        ProcessLost: It failed.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo and its store
        raise ProcessLost(str(error).splitlines()[0]) from error


class Exchange:
    """The processes of one fit, and what they tell each other.

    Every operation is one that all processes take part in, in the same order.

    Args:
        rank: Number of this process; the first one leads.
        size: Number of processes.
        group: The processes, joined by gloo; None for those that ``torch.distributed`` joined.
        patience: Longest wait within a step, in which all processes are busy at the same thing.
    """

    def __init__(
        self, rank: int, size: int, group: Any = None, patience: timedelta = WAITS.step
    ) -> None:
        self.rank, self.size, self.group = rank, size, group
        self._patience = patience

    @property
    def leads(self) -> bool:
        """Tell whether this is the first process."""
        return self.rank == 0

    def span(self, count: int) -> tuple[int, int]:
        """Return this process's part of ``count`` neighbouring things; sizes differ by one."""
        return span(count, self.rank, self.size)

    def all(self, mine: Any) -> list[Any]:
        """Return what each process says."""
        found: list[Any] = [None] * self.size
        with talking():
            dist.all_gather_object(found, mine, group=self.group)
        return found

    def from_first(self, told: Any) -> Any:
        """Return what the first process says; ``told`` counts there alone."""
        held = [told]
        with talking():
            dist.broadcast_object_list(held, 0, group=self.group)
        return held[0]

    def to_each(self, told: Sequence[Any] | None) -> Any:
        """Return what the first process has for this one; ``told`` counts there alone."""
        held: list[Any] = [None]
        with talking():
            dist.scatter_object_list(held, None if told is None else list(told), 0, self.group)
        return held[0]

    def to_first(self, mine: Any) -> list[Any] | None:
        """Return what each process says, in the first one; None in the others."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        with talking():
            dist.gather_object(mine, found, 0, group=self.group)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place; all of them get the same bits.

        Raises:
            ProcessLost: A process is gone, or takes longer than ``patience``.
        """
        begin = time.monotonic()
        try:
            with talking():
                work = dist.all_reduce(values, group=self.group, async_op=True)
                assert work is not None
                work.wait(self._patience)
        except ProcessLost as error:
            seconds = self._patience.total_seconds()
            if time.monotonic() - begin < seconds:
                raise
            raise ProcessLost(f"it gave no answer within {seconds:.0f} s") from error
        return values


def span(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return one process's part of ``count`` neighbouring things; sizes differ by one at most.

    Example:
        >>> [span(7, rank, 3) for rank in range(3)]
        [(0, 2), (2, 4), (4, 7)]
    """
    return count * rank // size, count * (rank + 1) // size
