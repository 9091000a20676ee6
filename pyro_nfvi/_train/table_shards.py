"""A table of rows over several processes: each holds some rows, and what Adam knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._optim.rowwise_adam import ROW_STATE, row_state
from pyro_nfvi._processes.exchange import Exchange, span

#: Some rows of a table, and their state, in the order of ``ROW_STATE``.
Rows = tuple[Tensor, list[Tensor]]


class TableShard:
    """The rows of a table ``(N, k)`` that this process owns: neighbouring ones.

    Args:
        table: The whole table, for its shape and type.
        exchange: The processes.

    Attributes:
        own: The rows, a leaf.
        start: Number of the first one.
        stop: Number after the last one.
    """

    def __init__(self, table: Tensor, exchange: Exchange) -> None:
        self.count, self._size = len(table), exchange.size
        self.start, self.stop = exchange.span(self.count)
        self.own = table.detach()[self.start : self.stop].clone().requires_grad_()
        self._moved = torch.zeros(len(self.own), dtype=torch.bool)

    def part(self, numbers: Tensor) -> Tensor:
        """Return rows ``(R, k)`` where they are this process's own, zeros elsewhere."""
        found = self.own.new_zeros(len(numbers), *self.own.shape[1:])
        mine = self._mine(numbers)
        found[mine] = self.own.detach()[numbers[mine] - self.start]
        return found

    def set_gradient(self, numbers: Tensor, gradient: Tensor) -> None:
        """Leave the gradient of own rows in :attr:`own`, of rows ``(R, k)`` of all processes."""
        mine = self._mine(numbers)
        local = numbers[mine] - self.start
        self.own.grad = torch.sparse_coo_tensor(
            local.unsqueeze(0), gradient[mine], self.own.shape, check_invariants=False
        )
        self._moved[local.cpu()] = True

    def _mine(self, numbers: Tensor) -> Tensor:
        return (numbers >= self.start) & (numbers < self.stop)

    # ------------------------------------------------------------------- from and to the first

    def cut(self, table: Tensor, state: dict[str, Any]) -> list[Rows]:
        """Cut a whole table and its state into the rows of each process."""
        row_state(state, table)
        held = [table.detach(), *(state[name] for name in ROW_STATE)]
        spans = [span(self.count, rank, self._size) for rank in range(self._size)]
        parts = [[one[start:stop].clone() for one in held] for start, stop in spans]
        return [(first, rest) for first, *rest in parts]

    def put(self, rows: Rows, state: dict[str, Any]) -> None:
        """Take rows and their state as own ones."""
        values, found = rows
        with torch.no_grad():
            self.own.copy_(values)
        state.clear()
        state.update({name: one.to(self.own.device) for name, one in zip(ROW_STATE, found)})
        self._moved.zero_()

    def take(self, state: dict[str, Any]) -> Rows:
        """Copy own rows and their state."""
        row_state(state, self.own.detach())
        return self.own.detach().clone(), [state[name].clone() for name in ROW_STATE]

    def restore(self, rows: Rows, state: dict[str, Any]) -> None:
        """Go back to rows that were taken."""
        values, found = rows
        self.put((values, [one.clone() for one in found]), state)
        self._moved.fill_(True)

    def news(self, state: dict[str, Any]) -> tuple[Tensor, Rows]:
        """Return the numbers and the rows that moved since they were last told, and its state."""
        local = self._moved.nonzero()[:, 0]
        self._moved.zero_()
        at = local.to(self.own.device)
        row_state(state, self.own.detach())
        rows = self.own.detach()[at], [state[name][at] for name in ROW_STATE]
        return local + self.start, rows

    @staticmethod
    def write(news: Sequence[tuple[Tensor, Rows]], table: Tensor, state: dict[str, Any]) -> None:
        """Write what processes told into a whole table and its state."""
        row_state(state, table)
        held = [table.detach(), *(state[name] for name in ROW_STATE)]
        for numbers, (values, found) in news:
            for whole, part in zip(held, [values, *found], strict=True):
                whole[numbers.to(whole.device)] = part.to(whole)
