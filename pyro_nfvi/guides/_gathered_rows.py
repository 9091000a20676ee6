"""The rows of a guide's tables that one mini-batch sees, as tensors of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.flows._plate_flow import PlateBlock, Take


@dataclass(frozen=True, eq=False)
class GatheredTable:
    """A table ``(N, k)`` of which a mini-batch sees the rows of one block."""

    table: Tensor
    block: str

    def at(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """Return the rows ``(*b, R, k)`` at the numbers of each block's rows ``(*b, R)``."""
        return F.embedding(numbers[self.block], self.table.detach())

    def gradient(self, numbers: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Return the sparse gradient of the table from that of its rows ``(R, k)``."""
        index = numbers[self.block].unsqueeze(0)
        return torch.sparse_coo_tensor(index, rows, self.table.shape, check_invariants=False)


@dataclass(frozen=True, eq=False)
class GatheredRows:
    """Rows of a guide's tables that a mini-batch of any rows sees.

    Its density is a function of rows that stand in no table, so that a step can be recorded once
    and run for other rows.

    Attributes:
        layout: The vector of a mini-batch of this size.
        trained: Tables that train.
        fixed: Tables that stay.
        density: From the rows of plates and from tables' rows, in the order of ``trained`` and
            ``fixed``, to the density of the mini-batch.
    """

    layout: PlateLayout
    trained: tuple[GatheredTable, ...]
    fixed: tuple[GatheredTable, ...]
    density: Callable[[Mapping[str, Tensor], list[Tensor]], FlowDensity]

    def numbers(self, rows: Mapping[str, Tensor]) -> TensorDict:
        """Return the numbers ``(*b, R)`` of each block's rows in its tables.

        Args:
            rows: Numbers of the rows of plates ``(*b, B)``.
        """
        known = {plate: rows[plate] for plate in self.layout.rows}
        layout, found = self.layout, dict[str, Tensor]()
        for block in layout.blocks:
            if block.rows is not None:
                found[block.name] = layout.table_rows(block, known).contiguous()
        return found


@dataclass
class Collect:
    """A :data:`Take` that notes the tables of which it takes some rows."""

    found: list[GatheredTable] = field(default_factory=list)

    def __call__(self, block: PlateBlock, table: Tensor) -> Tensor:
        if block.rows is not None:
            self.found.append(GatheredTable(table, block.name))
        return block.of_rows(table)


def given(tables: list[GatheredTable], values: list[Tensor]) -> Take:
    """Return a :data:`Take` that gives rows which were taken before."""
    places = {id(one.table): value for one, value in zip(tables, values, strict=True)}

    def take(block: PlateBlock, table: Tensor) -> Tensor:
        return table if block.rows is None else places[id(table)]

    return take
