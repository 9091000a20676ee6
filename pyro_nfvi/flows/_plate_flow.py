"""A flow over a vector of many rows: each row by one conditional flow that all rows share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi._vjp import vjp
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow, InverseKind


@dataclass(frozen=True, eq=False)
class PlateBlock:
    """R rows of d coordinates each, of a vector, and the rows of other blocks they stand below.

    Attributes:
        name: Name of the block; ``""`` for the one of global coordinates.
        positions: ``(R, d)``, where each coordinate of each row stands in the vector.
        parents: For each block that the rows stand below, ``(R,)``: the row there of each row here.
        plates: Plates that the rows run over, from left to right.
        sites: Names of what the coordinates of a row belong to.
        rows: ``(R,)``, the rows' places in tables of all rows; None if these are all rows, in
            order.
        weight: How often a row counts in densities: N / B for B rows of N.
    """

    name: str
    positions: Tensor
    parents: Mapping[str, Tensor] = field(default_factory=dict)
    plates: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    rows: Tensor | None = None
    weight: float = 1.0

    @property
    def num_rows(self) -> int:
        """R, the number of rows."""
        return self.positions.shape[0]

    @property
    def width(self) -> int:
        """d, the coordinates of a row."""
        return self.positions.shape[1]

    def to(self, device: torch.device) -> PlateBlock:
        """Return the block with its index tensors on a device."""
        if self.positions.device == device:
            return self
        return replace(
            self,
            positions=self.positions.to(device),
            parents={name: rows.to(device) for name, rows in self.parents.items()},
            rows=None if self.rows is None else self.rows.to(device),
        )

    def of_rows(self, table: Tensor, *, sparse: bool = False) -> Tensor:
        """Take this block's rows ``(R, k)`` from a table ``(N, k)`` of all rows."""
        return table if self.rows is None else F.embedding(self.rows, table, sparse=sparse)


#: Takes a block's rows ``(R, k)`` from a table of all.
Take: TypeAlias = Callable[[PlateBlock, Tensor], Tensor]


@final
class PlateFlow(Flow):
    r"""One flow for global coordinates, and for each block of rows one that all its rows share.

    .. math::
        y_g = f_g(x_g), \qquad y_{b,r} = f_b(x_{b,r};\; c_{b,r}), \qquad
        c_{b,r} = (y_{\mathrm{parents}(b, r)},\; \mathrm{code}_{b,r})

    Block-triangular: the log-determinant is the sum over rows, and the inverse needs no more than
    that of each block, since the contexts are images. Scores are pushed without an inverse: with
    :math:`s_{b,r}` the score that the block's own flow pushes at a fixed context, the parents'
    scores gain :math:`-J_c^\top s_{b,r} - \nabla_c \mathrm{ladj}` of :math:`f_b`, which follows
    from :math:`\nabla_c \log q(y \mid c)` at fixed y.

    Where a block's ``weight`` w is not 1 (a mini-batch of the rows), each of its rows counts w
    times in the log-determinant and in scores: the weighted log density of a mini-batch is an
    unbiased estimate of that of all rows, and its score the gradient of that estimate. With
    weights of 1 the laws of all flows hold.

    Args:
        blocks: The blocks, parents before children; together they hold each coordinate once.
        flows: For each block a flow of its width, with a context of the parents' widths and the
            code's; None for the identity.
        codes: For some blocks a code of each row, ``(R, k)``: a parameter, or a tensor that
            somebody else owns.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        Linear in rows.

    Raises:
        OptionError: Blocks that do not hold each coordinate once, a parent that does not stand
            before its child, a flow of another size.

    Source: conditional flows shared by the rows of a plate, Rouillard and Wassermann 2022,
    arXiv:2106.05950; path gradients, Vaitl et al. 2024, arXiv:2403.15881.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import make_flow
        >>> from pyro_nfvi.flows._plate_flow import PlateBlock, PlateFlow
        >>> blocks = [
        ...     PlateBlock("", torch.tensor([[0, 1]])),
        ...     PlateBlock("cells", torch.arange(2, 11).reshape(9, 1), {"": torch.zeros(9).long()}),
        ... ]
        >>> flow = PlateFlow(blocks, {"": make_flow("iaf*2", 2), "cells": make_flow("iaf", 1, 2)})
        >>> y, ladj = flow(torch.zeros(5, 11))
        >>> y.shape, ladj.shape
        (torch.Size([5, 11]), torch.Size([5]))
    """

    inverse_kind: InverseKind = "exact"

    def __init__(
        self,
        blocks: Sequence[PlateBlock],
        flows: Mapping[str, Flow | None],
        codes: Mapping[str, Tensor] | None = None,
    ) -> None:
        codes = dict(codes or {})
        places = torch.cat([block.positions.reshape(-1) for block in blocks])
        super().__init__(len(places))
        self.blocks = tuple(blocks)
        self._numbers = {block.name: i for i, block in enumerate(blocks)}
        self._check(flows, codes)
        order = torch.empty_like(places)
        order[places] = torch.arange(len(places), device=places.device)
        self.register_buffer("order", order, persistent=False)
        self.order: Tensor
        #: Blocks in which a map stands, by their numbers.
        self.flows = nn.ModuleDict(
            {str(i): flow for i, b in enumerate(blocks) if (flow := flows.get(b.name)) is not None}
        )
        kinds = {flow.inverse_kind for flow in flows.values() if flow is not None}
        self.inverse_kind = next(
            (kind for kind in ("numeric", "sequential") if kind in kinds), "exact"
        )
        for i, block in enumerate(blocks):
            self.register_buffer(f"positions_{i}", block.positions, persistent=False)
            for name, rows in block.parents.items():
                index = self._index(name)
                if blocks[index].num_rows > 1:
                    self.register_buffer(f"parents_{i}_{index}", rows, persistent=False)
            code = codes.get(block.name)
            if isinstance(code, nn.Parameter):
                self.register_parameter(f"code_{i}", code)
            elif code is not None:
                # Whoever binds the flow to rows owns it and trains it.
                self.register_buffer(f"code_{i}", code, persistent=False)

    def _check(self, flows: Mapping[str, Flow | None], codes: Mapping[str, Tensor]) -> None:
        before: dict[str, PlateBlock] = {}
        for block in self.blocks:
            missing = [name for name in block.parents if name not in before]
            if missing:
                raise OptionError(
                    f"PlateFlow: the block {block.name!r} stands below {missing[0]!r}, which does "
                    "not stand before it. Give parents before children."
                )
            context_dim = sum(before[name].width for name in block.parents)
            code = codes.get(block.name)
            if code is not None:
                if code.dim() != 2 or (
                    len(code) != block.num_rows and not isinstance(code, nn.Parameter)
                ):
                    raise OptionError(
                        f"PlateFlow: the block {block.name!r} needs a code of shape "
                        f"({block.num_rows}, k); got {tuple(code.shape)}."
                    )
                context_dim += code.shape[1]
            flow = flows.get(block.name)
            if flow is not None and (
                flow.dim != block.width or flow.context_dim not in (0, context_dim)
            ):
                raise OptionError(
                    f"PlateFlow: the block {block.name!r} needs a flow of dim={block.width} and "
                    f"context_dim={context_dim}; got dim={flow.dim}, "
                    f"context_dim={flow.context_dim}."
                )
            before[block.name] = block
        strays = [name for name in (*flows, *codes) if name not in before]
        if strays:
            raise OptionError(f"PlateFlow has no block {strays[0]!r}; it has {list(before)}.")

    def _index(self, name: str) -> int:
        return self._numbers[name]

    def flow_of(self, name: str) -> Flow | None:
        """Return the flow of a block; None where it is the identity."""
        found = self.flows[str(i)] if str(i := self._index(name)) in self.flows else None
        return found if isinstance(found, Flow) else None

    def code_of(self, name: str) -> Tensor | None:
        """Return the codes of a block's rows ``(R, k)``; None where there are none."""
        code: Tensor | None = getattr(self, f"code_{self._index(name)}", None)
        return code

    def at(
        self,
        blocks: Sequence[PlateBlock],
        codes: Mapping[str, Tensor] | None = None,
        *,
        sparse: bool = False,
    ) -> PlateFlow:
        """Return the flow of other rows of the same blocks; it shares the parameters.

        Args:
            blocks: The blocks of the other vector, with ``rows`` and ``weight`` of each; blocks
                that are not among them are left out.
            codes: Codes of their rows; those of this flow's tables where none are given.
            sparse: Let gradients to the tables be sparse.
        """
        given = dict(codes or {})
        for block in blocks:
            table = self.code_of(block.name)
            if block.name not in given and table is not None:
                given[block.name] = block.of_rows(table, sparse=sparse)
        return PlateFlow(blocks, {block.name: self.flow_of(block.name) for block in blocks}, given)

    # ------------------------------------------------------------------------------ the map

    def _part(self, x: Tensor, i: int) -> Tensor:
        """Cut a block ``(*b, R, d)`` out of a vector."""
        positions: Tensor = getattr(self, f"positions_{i}")
        return x[..., positions]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put parts of the blocks, ``(*b, R, d)`` each, together to a vector."""
        return torch.cat([part.flatten(-2) for part in parts], -1)[..., self.order]

    def _parents(self, i: int) -> list[tuple[int, Tensor | None]]:
        """Return each parent's number, and the rows there; None if it has one row."""
        return [
            (index, getattr(self, f"parents_{i}_{index}", None))
            for index in map(self._index, self.blocks[i].parents)
        ]

    def _context(self, i: int, images: Sequence[Tensor]) -> Tensor | None:
        """Return what a block's flow is given, ``(*b, R, C)``."""
        flow = self.flows[str(i)]
        if not flow.context_dim:
            return None
        rows, parts = self.blocks[i].num_rows, []
        batch = images[0].shape[:-2] if images else ()
        for index, where in self._parents(i):
            image = images[index]
            parts.append(image.expand(*batch, rows, -1) if where is None else image[..., where, :])
        code: Tensor | None = getattr(self, f"code_{i}", None)
        if code is not None:
            parts.append(code.expand(*batch, -1, -1))
        return torch.cat(parts, -1)

    def forward_by_rows(self, x: Points) -> tuple[Tensor, list[Tensor]]:
        """Map ``x`` to y and to the log-determinant of each row, ``(*b, R)`` for each block.

        These do not count by the blocks' weights.
        """
        x, _ = self.enter(x, None)
        images: list[Tensor] = []
        ladjs: list[Tensor] = []
        for i in range(len(self.blocks)):
            y = self._part(x, i)
            if str(i) in self.flows:
                y, ladj = self.flows[str(i)](y, self._context(i, images))
            else:
                ladj = y.new_zeros(y.shape[:-1])
            images.append(y)
            ladjs.append(ladj)
        return self.join(images), ladjs

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        y, ladjs = self.forward_by_rows(x)
        total = x.new_zeros(x.shape[:-1])
        for block, ladj in zip(self.blocks, ladjs):
            total = total + block.weight * ladj.sum(-1)
        return y, total

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        parts: list[Tensor] = []
        total = y.new_zeros(y.shape[:-1])
        images = [self._part(y, i) for i in range(len(self.blocks))]
        for i, block in enumerate(self.blocks):
            x = images[i]
            if (flow := self.flow_of(block.name)) is not None:
                x, ladj = flow.inverse(x, self._context(i, images[:i]))
                total = total + block.weight * ladj.sum(-1)
            parts.append(x)
        return self.join(parts), total

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, _ = self.enter(x, context)
        score = score.detach().expand_as(x)
        images: list[Tensor] = []
        scores: list[Tensor] = []
        total = x.new_zeros(x.shape[:-1])
        for i, block in enumerate(self.blocks):
            part, pushed, w = self._part(x, i), self._part(score, i), block.weight
            flow = self.flow_of(block.name)
            if flow is None:
                images.append(part)
                scores.append(pushed)
                continue
            given = self._context(i, images)
            y, ladj, pushed = flow.forward_with_score(part, pushed / w, given)
            pushed = w * pushed
            total = total + w * ladj.sum(-1)
            if given is not None:
                self._add_to_parents(i, flow, part.detach(), given.detach(), pushed, scores)
            images.append(y)
            scores.append(pushed)
        return self.join(images), total, self.join(scores)

    @torch.no_grad()
    def _add_to_parents(
        self, i: int, flow: Flow, x: Tensor, given: Tensor, pushed: Tensor, scores: list[Tensor]
    ) -> None:
        """Add to the parents' scores what the images of a block owe to their context."""
        weight = pushed.new_full(pushed.shape[:-1], self.blocks[i].weight)
        (owed,) = vjp(lambda context: flow(x, context), given)((pushed, weight))
        start = 0
        for index, where in self._parents(i):
            stop = start + self.blocks[index].width
            part, start = owed[..., start:stop], stop
            if where is None:
                scores[index] = scores[index] - part.sum(-2, keepdim=True)
            else:
                scores[index] = scores[index].index_add(-2, where, -part)

    def extra_repr(self) -> str:
        blocks = ", ".join(f"{b.name or 'globals'}: {b.num_rows} x {b.width}" for b in self.blocks)
        return f"{super().extra_repr()}, {blocks}"
