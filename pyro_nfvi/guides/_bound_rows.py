"""The map of a plate guide for some rows, for one call; and these rows in parts, for summaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.partial_centering import PartialCentering
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._block_arrow import ArrowFactor
from pyro_nfvi.flows._block_arrow_affine import BlockArrowAffine
from pyro_nfvi.flows._plate_flow import PlateFlow
from pyro_nfvi.flows._row_affine import RowAffine
from pyro_nfvi.guides._quantiles import base_points
from pyro_nfvi.guides._recipe import GUIDES


@dataclass(frozen=True)
class BoundRows:
    """A guide's map for the rows of a layout.

    Attributes:
        layout: The rows.
        flow: The flows of globals and rows.
        loc: Shift behind them, ``(D,)``.
        scale: Scale behind them, ``(D,)``.
        weight: How often each coordinate counts, ``(D,)``; once if None.
        centering: The map from coordinates relative to priors, behind all others, if any.
        coupling: A fixed map behind the flows that couples rows to those that enclose them, with
            determinant 1, if any.
    """

    layout: PlateLayout
    flow: PlateFlow
    loc: Tensor
    scale: Tensor
    weight: Tensor | None
    centering: PartialCentering | None
    coupling: ArrowFactor | None = None

    def transport(self) -> Flow:
        """Return the whole map, from noise to the vector of these rows."""
        parts: list[Flow] = [self.flow]
        if self.coupling is not None:
            parts.append(BlockArrowAffine(torch.zeros_like(self.loc), self.coupling))
        parts.append(RowAffine(self.loc, self.scale, self.weight))
        return Chain(*parts, *([] if self.centering is None else [self.centering]))

    def by_rows(self, eps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map noise to z, and to the log-determinant of each row ``(*b, R)``, unweighted."""
        y, ladjs = self.flow.forward_by_rows(eps)
        y = y if self.coupling is None else self.coupling.push(y)
        z, slope = self.loc + self.scale * y, self.scale.log()
        if self.centering is not None:
            z, change = self.centering.by_coordinates(z)
            slope = slope + change
        rows = [
            ladj + self.layout.part(block, slope).sum(-1)
            for block, ladj in zip(self.layout.blocks, ladjs)
        ]
        return z, rows

    def spread(self) -> tuple[Tensor, BoundRows]:
        """Split off the shift, so that a spread far below it keeps its digits, where it is last."""
        zero = torch.zeros_like(self.loc)
        return (self.loc, replace(self, loc=zero)) if self.centering is None else (zero, self)


def in_parts(layout: PlateLayout, whole: PlateLayout) -> Iterator[tuple[PlateLayout, TensorDict]]:
    """Yield parts of a layout whose :func:`points` fit into memory, and their rows in it.

    Args:
        layout: Some rows.
        whole: The layout of all rows.
    """
    most = GUIDES.numbers // (2 * GUIDES.pairs + 1)
    pending = [{plate: torch.arange(n) for plate, n in layout.sizes.items()}]
    while pending:
        cells = pending.pop()
        plate = max(cells, key=lambda p: len(cells[p]), default=None)
        if plate is None or len(layout.index(cells)) <= most or len(cells[plate]) < 2:
            rows = {p: layout.rows[p][c] if p in layout.rows else c for p, c in cells.items()}
            yield (
                whole.at(rows, weighted=False, anew=layout.anew, indexed=layout.indexed),
                cells,
            )
            continue
        half = len(cells[plate]) // 2
        rest = {**cells, plate: cells[plate][half:]}
        pending += [rest, {**cells, plate: cells[plate][:half]}]


def points(layout: PlateLayout, like: Tensor) -> Tensor:
    """Return fixed points of noise ``(4097, D)``: of each block other ones, of its rows the same.

    A row and the rows that enclose it are of different blocks, so that all its marginals are right.
    """
    found = base_points(like.new_zeros(sum(block.width for block in layout.blocks)))
    parts = found.split([block.width for block in layout.blocks], 1)
    filled = found.new_empty(len(found), layout.dim)
    for block, own in zip(layout.blocks, parts):
        filled[:, block.positions.to(like.device)] = own.unsqueeze(1).expand(-1, block.num_rows, -1)
    return filled
