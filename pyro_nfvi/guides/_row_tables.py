"""Tables of a plate guide: location, scale and code of each row, free or from an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._math import bounded_below, softplus_inverse
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow
from pyro_nfvi.flows._plate_flow import PlateBlock, Take
from pyro_nfvi.flows._recipe import BOUNDS


@dataclass(frozen=True)
class RowNumbers:
    """Numbers of a block's rows: location and scale ``(R, d)``, code ``(R, k)`` or None."""

    loc: Tensor
    scale: Tensor
    code: Tensor | None


class RowTables(nn.Module):
    r"""Location and scale of each row of each block, and a code for its conditional flow.

    .. math::
        \mu_r = m_r + A h_r, \qquad \sigma_r = \mathrm{softplus}(s_r + B h_r), \qquad
        \mathrm{code}_r = (c_r, h_r)

    with free tables m, s and c, one row each, and :math:`h_r` what encoders make of the row's
    data. A block that is amortised alone has one row in m and s, shared by all, and no c. A, B and
    c start at 0, so that the guide starts as a diagonal normal.

    Args:
        blocks: The blocks of all rows.
        init_loc: Initial location of each block, ``(R, d)``.
        init_scale: Initial scale.
        code_dim: Size of the free code of each block's rows; 0 for none.
        encoding_dim: Size of what encoders give each block's rows; 0 for none.
        free: Blocks with a free table; the others share one row.
    """

    def __init__(
        self,
        blocks: Sequence[PlateBlock],
        init_loc: Mapping[str, Tensor],
        init_scale: float,
        code_dim: Mapping[str, int],
        encoding_dim: Mapping[str, int],
        free: frozenset[str],
    ) -> None:
        super().__init__()
        self._index = {block.name: i for i, block in enumerate(blocks)}
        self._free = free
        #: Degree to which each informed site is taken relative to its prior; 0 is the centred form.
        self.degrees: nn.Parameter | None = None
        self.loc, self.raw_scale = nn.ParameterList(), nn.ParameterList()
        self.codes, self.heads = nn.ParameterDict(), nn.ModuleDict()
        for i, block in enumerate(blocks):
            loc = init_loc[block.name]
            if block.name not in free:
                loc = loc.mean(0, keepdim=True)
            start = softplus_inverse(torch.full_like(loc, init_scale))
            self.loc.append(nn.Parameter(loc.clone()))
            self.raw_scale.append(nn.Parameter(start))
            if code_dim[block.name]:
                zeros = loc.new_zeros(block.num_rows, code_dim[block.name])
                self.codes[str(i)] = nn.Parameter(zeros)
            if encoding_dim[block.name]:
                head = nn.Linear(encoding_dim[block.name], 2 * block.width).to(loc)
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
                self.heads[str(i)] = head

    def tables(self) -> list[nn.Parameter]:
        """Return the parameters that have a row for each row of a plate."""
        named = [i for name, i in self._index.items() if name in self._free and name]
        found = [part[i] for part in (self.loc, self.raw_scale) for i in named]
        return [*found, *self.codes.values()]

    def is_free(self, name: str) -> bool:
        """Tell whether each row of a block has numbers of its own."""
        return name in self._free

    def at(
        self, block: PlateBlock, encoding: Tensor | None, take: Take = PlateBlock.of_rows
    ) -> RowNumbers:
        """Return the numbers of a block's rows.

        Args:
            block: The block, of all rows or of some.
            encoding: What encoders make of its rows' data, ``(R, k)``.
            take: Takes the block's rows from a table.
        """
        i = self._index[block.name]
        loc, raw = self.loc[i], self.raw_scale[i]
        if block.name in self._free:
            loc, raw = (take(block, table) for table in (loc, raw))
        code = None
        if str(i) in self.codes:
            code = take(block, self.codes[str(i)])
        if encoding is not None:
            shift, stretch = self.heads[str(i)](encoding).chunk(2, -1)
            # A net gives numbers for data that nobody has looked at; tables go where they train.
            loc, raw = loc + shift, raw + bounded_below(stretch, BOUNDS.lowest_scale)
            code = encoding if code is None else torch.cat([code, encoding], -1)
        shape = (block.num_rows, block.width)
        return RowNumbers(loc.expand(shape), F.softplus(raw).expand(shape), code)

    def coupling(
        self, blocks: Sequence[PlateBlock], take: Take = PlateBlock.of_rows
    ) -> ArrowFactor | None:
        """Return the map that couples rows to their parents' rows, for these rows, if there is one.

        Triangular with ones on its diagonal, in coordinates that :meth:`at` then scales and shifts.
        """
        if "inner_0" not in self._buffers:
            return None
        trils, weights, parts = list[Tensor](), list[tuple[Tensor, ...]](), list[ArrowBlock]()
        place = {block.name: i for i, block in enumerate(blocks)}
        for block in blocks:
            i = self._index[block.name]
            names = sorted(block.parents, key=place.__getitem__)
            tril = take(block, self.get_buffer(f"inner_{i}"))
            trils.append(tril.unflatten(-1, (block.width, block.width)))
            found = [take(block, self.get_buffer(f"above_{i}_{self._index[n]}")) for n in names]
            weights.append(tuple(one.unflatten(-1, (block.width, -1)) for one in found))
            parents = tuple((place[name], block.parents[name]) for name in names)
            parts.append(ArrowBlock(block.positions, parents))
        return ArrowFactor(BlockArrow.known(parts), tuple(trils), tuple(weights))

    def coupling_shapes(self, blocks: Sequence[PlateBlock]) -> dict[str, tuple[int, int]]:
        """Return the shapes of the numbers of :meth:`coupling`, by name."""
        widths = {block.name: block.width for block in blocks}
        shapes = dict[str, tuple[int, int]]()
        for block in blocks:
            i, size = self._index[block.name], block.width
            shapes[f"inner_{i}"] = (block.num_rows, size * size)
            for name in block.parents:
                shapes[f"above_{i}_{self._index[name]}"] = (block.num_rows, size * widths[name])
        return shapes

    def _above(self, block: PlateBlock, parent: PlateBlock) -> Tensor:
        return self.get_buffer(f"above_{self._index[block.name]}_{self._index[parent.name]}")

    @torch.no_grad()
    def set_coupling(self, blocks: Sequence[PlateBlock], factor: ArrowFactor) -> None:
        """Set :meth:`coupling` for the blocks of all rows, from a block arrow over these blocks."""
        like = self.loc[0]
        for block, tril, weights, known in zip(
            blocks, factor.trils, factor.weights, factor.arrow.blocks, strict=True
        ):
            i = self._index[block.name]
            self.register_buffer(f"inner_{i}", tril.flatten(1).to(like))
            for (above, _), weight in zip(known.parents, weights, strict=True):
                at = self._index[blocks[above].name]
                self.register_buffer(f"above_{i}_{at}", weight.flatten(1).to(like))

    @torch.no_grad()
    def follow(
        self, blocks: Sequence[PlateBlock], place: int, shift: Tensor, ratio: Tensor
    ) -> None:
        """Keep how rows depend on a block of one row that was shifted and stretched.

        Args:
            blocks: The blocks of all rows.
            place: The place of the block that moved.
            shift: Its shift in units of its scale before, ``(1, d)``.
            ratio: Its scale relative to that, ``(d,)``.
        """
        factor = self.coupling(blocks)
        if factor is None:
            return
        moved = [torch.zeros_like(tril[..., 0]).double() for tril in factor.trils]
        moved[place] = shift.double()
        for i, (block, known) in enumerate(zip(blocks, factor.arrow.blocks, strict=True)):
            if i == place or not known.parents:
                continue
            for (above, rows), weight in zip(known.parents, factor.weights[i], strict=True):
                moved[i] += (weight.double() @ moved[above][rows].unsqueeze(-1)).squeeze(-1)
                if above == place:
                    own = self._above(block, blocks[above])
                    own.copy_((weight.double() * ratio.double()).flatten(1))
            table = self.loc[self._index[block.name]]
            scale = F.softplus(self.raw_scale[self._index[block.name]])
            table.add_((scale * moved[i]).to(table))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Have a coupling where the numbers that come have one, before they are copied."""
        ours = [name for name in self._buffers if name.startswith(("inner_", "above_"))]
        for name in ours:
            if prefix + name not in state_dict:
                del self._buffers[name]
        for name, value in state_dict.items():
            own = name.removeprefix(prefix)
            if name.startswith(prefix) and own.startswith(("inner_", "above_")):
                self.register_buffer(own, torch.zeros_like(value).to(self.loc[0]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def set_gaussian(self, name: str, loc: Tensor, scale: Tensor) -> None:
        """Set location and scale ``(R, d)`` of a block's rows; of a shared row their means."""
        i = self._index[name]
        if name not in self._free:
            loc, scale = loc.mean(0, keepdim=True), scale.log().mean(0, keepdim=True).exp()
        self.loc[i].copy_(loc)
        self.raw_scale[i].copy_(softplus_inverse(scale))
