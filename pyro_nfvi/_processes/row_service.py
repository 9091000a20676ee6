"""A function of rows, evaluated by several processes: one leads, the others serve."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_nfvi._processes.exchange import Exchange, span, talking
from pyro_nfvi._typing import TensorPair

#: Rows ``(N, D)`` and indices by name to numbers ``(N,)`` and ``(N, D)``, rows independent.
RowFunction: TypeAlias = Callable[[Tensor, Mapping[str, Tensor]], TensorPair]
_DTYPES = (torch.float32, torch.float64)


class _Order(IntEnum):
    ROWS = 1
    END = 2
    CALL = 3


class RowService:
    """Evaluates a function of rows in several processes, each a part of the rows.

    The first process calls :meth:`evaluate` when it likes and :meth:`end` at last; the others call
    :meth:`serve`, which returns then. Who takes no decision cannot take another one: time limits,
    Ctrl-C and engines are the first process's alone.

    Args:
        function: The function, the same in every process.
        names: Names of the indices, the same in every process.
        dim: D.
        exchange: The processes.
        follow: What the other processes do with what :meth:`call` tells them.
    """

    def __init__(
        self,
        function: RowFunction,
        names: Sequence[str],
        dim: int,
        exchange: Exchange,
        follow: Callable[[Any], object] = lambda _: None,
    ) -> None:
        self._function, self._names, self._dim = function, tuple(names), dim
        self.exchange, self._follow = exchange, follow
        self._rank, self._size, self._group = exchange.rank, exchange.size, exchange.group

    def evaluate(self, rows: Tensor, indices: Mapping[str, Tensor]) -> TensorPair:
        """Evaluate rows over all processes; in the first one alone where another could not.

        Cost:
            Some tenths of a millisecond more than the largest part.

        Raises:
            ProcessLost: A process is gone.
        """
        held = rows.detach().cpu()
        sent = [indices[name].detach().cpu() for name in self._names]
        header = [_Order.ROWS, len(held), _DTYPES.index(held.dtype), *map(len, sent)]
        with _interrupts_wait():
            self._say(header, [held, *sent])
            part = self._part(held, rows, indices)
            parts = [torch.empty_like(part) for _ in range(self._size)]
            with talking():
                dist.gather(part, parts, 0, group=self._group)
        if any(float(one[-1, 0]) for one in parts):
            return self._function(rows, indices)
        counts = [span(len(held), rank, self._size) for rank in range(self._size)]
        found = torch.cat([one[: stop - start] for one, (start, stop) in zip(parts, counts)])
        found = found.to(rows.device)
        return found[:, 0].contiguous(), found[:, 1:].contiguous()

    def serve(self) -> None:
        """Evaluate parts of rows until the first process ends it.

        Raises:
            ProcessLost: A process is gone.
        """
        with _interrupts_ignored():
            while True:
                (order, count, dtype, *lengths), numbers = self._hear()
                if order == _Order.END:
                    return
                if order == _Order.CALL:
                    self._follow(self.exchange.from_first(None))
                    continue
                flat, *parts = numbers.split([count * self._dim, *lengths])
                rows = flat.reshape(count, self._dim).to(_DTYPES[dtype])
                indices = {name: one.long() for name, one in zip(self._names, parts)}
                part = self._part(rows, rows, indices)
                with talking():
                    dist.gather(part, None, 0, group=self._group)

    def call(self, told: Any) -> None:
        """Let the others do something other than rows: what they do with it, they know."""
        self._say([_Order.CALL, 0, 0, *[0] * len(self._names)], [])
        self.exchange.from_first(told)

    def end(self) -> None:
        """Let the others return from :meth:`serve`."""
        self._say([_Order.END, 0, 0, *[0] * len(self._names)], [])

    def _say(self, header: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Send numbers to the others, all of them if they are few in one message.

        Double precision holds every number of single precision, and every index.
        """
        head = torch.tensor(header, dtype=torch.float64)
        flat = torch.cat([head, *(one.reshape(-1).double() for one in tensors)])
        size = self._first(len(header))
        first = torch.zeros(size, dtype=torch.float64)
        first[: min(size, len(flat))] = flat[:size]
        with talking():
            dist.broadcast(first, 0, group=self._group)
            if len(flat) > size:
                dist.broadcast(flat[size:].contiguous(), 0, group=self._group)

    def _hear(self) -> tuple[list[int], Tensor]:
        """Receive what :meth:`_say` sends: the header, and the numbers after it."""
        width = 3 + len(self._names)
        size = self._first(width)
        flat = torch.zeros(size, dtype=torch.float64)
        with talking():
            dist.broadcast(flat, 0, group=self._group)
            header = [int(one) for one in flat[:width].tolist()]
            total = width + header[1] * self._dim + sum(header[3:])
            if total > size:
                rest = torch.zeros(total - size, dtype=torch.float64)
                dist.broadcast(rest, 0, group=self._group)
                flat = torch.cat([flat, rest])
        return header, flat[width:total]

    def _first(self, width: int) -> int:
        """Numbers of the first message: a step of many fits in it as a whole."""
        return width + 128 * self._dim

    def _part(self, held: Tensor, rows: Tensor, indices: Mapping[str, Tensor]) -> Tensor:
        """Evaluate this process's rows: ``(most + 1, 1 + D)``, the last row telling a failure."""
        start, stop = span(len(held), self._rank, self._size)
        most = -(-len(held) // self._size)
        part = held.new_zeros(most + 1, 1 + self._dim)
        try:
            if stop > start:
                values, gradients = self._function(rows[start:stop], indices)
                part[: stop - start, 0] = values.detach().cpu()
                part[: stop - start, 1:] = gradients.detach().cpu()
        except Exception:  # the first process evaluates all rows then, and raises what is raised
            part[-1, 0] = 1.0
        return part


@contextmanager
def interrupts_noted() -> Iterator[list[bool]]:
    """Note Ctrl-C in a list, in place of what it does else."""
    came: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C come after an exchange, which it would leave half done."""
    with interrupts_noted() as came:
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Leave Ctrl-C at the terminal, which reaches every process, to the first one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
