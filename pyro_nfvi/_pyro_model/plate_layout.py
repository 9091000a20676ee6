"""Layout of the vector of latents as rows of plates, for all rows or those of a mini-batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._plate_flow import PlateBlock


def _frames(site: LatentSite) -> list[CondIndepStackFrame]:
    """Return the vectorised plates of a site, from left to right in its shape."""
    frames = [frame for frame in site.cond_indep_stack if frame.dim is not None]
    return sorted(frames, key=lambda frame: frame.dim)


def _axes(site: LatentSite) -> list[int]:
    """Return the axis of each of :func:`_frames` in the site's shapes, constrained or not."""
    return [len(site.batch_shape) + frame.dim for frame in _frames(site)]


def _resized(site: LatentSite, sizes: Mapping[str, int], start: int) -> LatentSite:
    """Return a site with other numbers of rows, at a place of another vector."""
    shape, unconstrained = list(site.shape), list(site.unconstrained_shape)
    for frame, axis in zip(_frames(site), _axes(site)):
        shape[axis] = unconstrained[axis] = sizes[frame.name]
    stack = tuple(
        frame if frame.dim is None else frame._replace(size=sizes[frame.name])
        for frame in site.cond_indep_stack
    )
    return replace(
        site,
        shape=tuple(shape),
        unconstrained_shape=tuple(unconstrained),
        start=start,
        stop=start + math.prod(unconstrained),
        cond_indep_stack=stack,
    )


def _resized_records(space: LatentSpace, sizes: Mapping[str, int]) -> tuple[LatentSite, ...]:
    records, start = list[LatentSite](), 0
    for site in space.records:
        records.append(_resized(site, sizes, start))
        start = records[-1].stop
    return tuple(records)


def _gathered(site: LatentSite, rows: Mapping[str, Tensor]) -> Tensor:
    """Places in the whole vector of the coordinates that a site has at some rows, flat."""
    axes = {axis: frame.name for frame, axis in zip(_frames(site), _axes(site))}
    parts, stride = list[Tensor](), 1
    for axis in reversed(range(len(site.unconstrained_shape))):
        size = site.unconstrained_shape[axis]
        chosen = rows.get(axes.get(axis, ""))
        index = torch.arange(size) if chosen is None else chosen.cpu()
        parts.append((index * stride).reshape(-1, *[1] * len(parts)))
        stride *= size
    return reduce(torch.add, parts, torch.tensor(site.start)).reshape(-1)


def as_rows(plate: str, index: Any) -> Tensor:
    """Read what a caller gives as the rows of a plate.

    Raises:
        OptionError: It is no vector of numbers, or empty.
    """
    try:
        found = torch.as_tensor([index] if isinstance(index, int) else index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"The rows of the plate {plate!r} need to be a vector of whole numbers; got "
            f"{type(index).__name__} ({error})."
        ) from error
    if found.dim() == 1 and not len(found):
        raise OptionError(f"No row of the plate {plate!r} is named; give one at least.")
    return found


def check_rows(plate: str, index: Any, size: int) -> Tensor:
    """Read what a caller gives as rows of a plate that has so many: ``(B,)``, on the CPU.

    Raises:
        OptionError: They are no different whole numbers from 0 to ``size - 1``.
    """
    index = as_rows(plate, index)
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise OptionError(
            f"The rows of the plate {plate!r} need to be a vector of whole numbers; got "
            f"{index.dtype} of shape {tuple(index.shape)}."
        )
    index = index.long().cpu()
    if len(index.unique()) < len(index):
        raise OptionError(f"A row of the plate {plate!r} is named twice: {index.tolist()[:20]}.")
    outside = index[(index < 0) | (index >= size)]
    if len(outside):
        raise OptionError(
            f"The plate {plate!r} has the rows 0 to {size - 1}; got {int(outside[0])}."
        )
    return index


def joined_space(space: LatentSpace, plates: Sequence[str]) -> LatentSpace:
    """Return a space in which the rows of some plates are within what encloses them.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model():
        ...     with pyro.plate("items", 3):
        ...         pyro.sample("hard", dist.Normal(torch.zeros(()), 1.0))
        >>> space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace())
        >>> PlateLayout.from_space(joined_space(space, ["items"])).blocks[0].positions
        tensor([[0, 1, 2]])
    """
    if not plates:
        return space
    records = tuple(
        replace(
            site,
            cond_indep_stack=tuple(
                frame._replace(dim=None) if frame.name in plates else frame
                for frame in site.cond_indep_stack
            ),
        )
        for site in space.records
    )
    return LatentSpace(records, space.init_loc)


def whole_space(space: LatentSpace) -> LatentSpace:
    """Return the space of all rows from that of one mini-batch.

    Initial values are repeated along a subsampled plate, as Pyro's guides repeat them.
    """
    sizes = {
        frame.name: int(frame.full_size or frame.size)
        for site in space.records
        for frame in _frames(site)
    }
    records = _resized_records(space, sizes)
    if all(new.shape == old.shape for new, old in zip(records, space.records)):
        return space
    rows = {
        frame.name: torch.arange(sizes[frame.name]) % int(frame.size)
        for site in space.records
        for frame in _frames(site)
    }
    index = torch.cat([_gathered(site, rows) for site in space.records])
    return LatentSpace(records, space.init_loc[index.to(space.init_loc.device)])


def _blocks(space: LatentSpace, sizes: Mapping[str, int]) -> tuple[PlateBlock, ...]:
    """Sort the sites of a space into blocks, parents before children."""
    members: dict[tuple[str, ...], list[LatentSite]] = {}
    for site in space.records:
        members.setdefault(tuple(frame.name for frame in _frames(site)), []).append(site)
    found = list[PlateBlock]()
    for plates in sorted(members, key=len):
        parts = []
        for site in members[plates]:
            axes, shape = _axes(site), site.unconstrained_shape
            others = [axis for axis in range(len(shape)) if axis not in axes]
            places = torch.arange(site.start, site.stop).reshape(shape)
            parts.append(
                places.permute([*axes, *others]).reshape(math.prod(sizes[p] for p in plates), -1)
            )
        # The number of each row along each of its plates.
        grid = torch.arange(len(parts[0])).reshape([sizes[plate] for plate in plates])
        along = {
            plate: (grid // math.prod(grid.shape[i + 1 :]) % sizes[plate]).reshape(-1)
            for i, plate in enumerate(plates)
        }
        parents = {
            other.name: _row(other.plates, along, sizes, len(parts[0]))
            for other in found
            if set(other.plates) < set(plates)
        }
        names = tuple(site.name for site in members[plates])
        found.append(
            PlateBlock("/".join(plates), torch.cat(parts, 1).contiguous(), parents, plates, names)
        )
    return tuple(found)


def _row(
    plates: tuple[str, ...], along: Mapping[str, Tensor], sizes: Mapping[str, int], count: int
) -> Tensor:
    """Number rows of a block by their numbers along each of its plates: ``(count,)``."""
    row = torch.zeros(count, dtype=torch.long)
    for plate in plates:
        row = row * sizes[plate] + along[plate]
    return row


@dataclass(frozen=True, eq=False)
class PlateLayout:
    """The vector of latents as rows of plates, for all rows or for some.

    A block is the set of sites that stand in the same vectorised plates. It has one row for each
    combination of their numbers, in the order of the plates from left to right, and in a row the
    unconstrained coordinates of all its sites; batch dimensions without a plate, and plates that
    are run one by one, are within the row. Its parents are the blocks whose plates are a proper
    subset of its own: those of both plates where two cross.

    Attributes:
        space: The vector: all rows, or those of a mini-batch.
        blocks: Parents before children, then in the order of the trace.
        sizes: The number of rows of each plate in the vector.
        full_sizes: The number of all its rows.
        rows: The rows that the vector has, for plates of which it has not all.
        anew: Plates whose rows are of other data.
        indexed: Plates whose rows are places in the data that come with them, rather than those
            of which a mini-batch holds the data.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model():
        ...     mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     with pyro.plate("cells", 5):
        ...         pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        >>> trace = pyro.poutine.trace(model).get_trace()
        >>> layout = PlateLayout.from_space(LatentSpace.from_trace(trace))
        >>> [(block.name, tuple(block.positions.shape)) for block in layout.blocks]
        [('', (1, 3)), ('cells', (5, 3))]
        >>> layout.at({"cells": torch.tensor([4, 2])}).dim
        9
    """

    space: LatentSpace
    blocks: tuple[PlateBlock, ...]
    sizes: Mapping[str, int]
    full_sizes: Mapping[str, int]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    anew: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()
    _sized: dict[tuple[int, ...], PlateLayout] = field(default_factory=dict, repr=False)

    @classmethod
    def from_space(cls, space: LatentSpace) -> PlateLayout:
        """Read the layout of all rows from the space of one run, of a mini-batch or of all data."""
        whole = whole_space(space)
        sizes = {f.name: int(f.size) for site in whole.records for f in _frames(site)}
        return cls(whole, _blocks(whole, sizes), sizes, sizes)

    @property
    def dim(self) -> int:
        """D, the size of the vector."""
        return self.space.dim

    def block(self, name: str) -> PlateBlock:
        """Return the block of this name."""
        return next(block for block in self.blocks if block.name == name)

    def at(
        self,
        rows: Mapping[str, Tensor],
        *,
        weighted: bool = True,
        anew: frozenset[str] = frozenset(),
        indexed: frozenset[str] = frozenset(),
    ) -> PlateLayout:
        """Return the layout of the vector that holds only these rows of these plates.

        Args:
            rows: For each plate of which not all rows are taken, their numbers ``(B,)``.
            weighted: Let a row count N / B times, as a part of a mini-batch; else once.
            anew: Plates whose rows are of other data than these, and so are no rows of tables.
            indexed: Plates whose rows are places in the data that come with them.

        Raises:
            OptionError: An unknown plate, or rows that are no numbers from 0 to N - 1.
        """
        chosen = {
            plate: index.cpu() if plate in anew else self._checked(plate, index)
            for plate, index in rows.items()
        }
        if not chosen:
            return self
        sizes = {plate: len(chosen.get(plate, range(n))) for plate, n in self.sizes.items()}
        key = tuple(sizes.values())
        if key not in self._sized:
            if len(self._sized) > 8:  # ragged batches have one or two sizes; chunks a few more
                self._sized.clear()
            records = _resized_records(self.space, sizes)
            space = LatentSpace(records, self.space.init_loc.new_empty(0))
            share = {plate: self.sizes[plate] / max(size, 1) for plate, size in sizes.items()}
            blocks = tuple(
                replace(block, weight=math.prod(share[plate] for plate in block.plates))
                for block in _blocks(space, sizes)
            )
            self._sized[key] = PlateLayout(space, blocks, sizes, self.sizes)
        found = self._sized[key]
        blocks = tuple(
            replace(
                block,
                rows=found.table_rows(block, chosen)
                if any(plate in chosen for plate in block.plates)
                else None,
                weight=block.weight if weighted else 1.0,
            )
            for block in found.blocks
        )
        index = self.index({plate: i % self.sizes[plate] for plate, i in chosen.items()})
        init_loc = self.space.init_loc[index.to(self.space.init_loc.device)]
        return replace(
            found,
            space=LatentSpace(found.space.records, init_loc),
            blocks=blocks,
            rows=chosen,
            anew=anew,
            indexed=indexed,
        )

    def index(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Places in this vector of the coordinates of some rows, in their vector's order."""
        return torch.cat([_gathered(site, rows) for site in self.space.records])

    def value_index(self, rows: Mapping[str, Tensor]) -> TensorDict:
        """Places of some rows in each site's constrained values, flat, by name."""
        return {
            site.name: _gathered(replace(site, unconstrained_shape=site.shape, start=0), rows)
            for site in self.space.records
        }

    def part(self, block: PlateBlock, vector: Tensor) -> Tensor:
        """Cut a block ``(*b, R, d)`` out of a vector ``(*b, D)``."""
        return vector[..., block.positions.to(vector.device)]

    def cells(self, block: PlateBlock) -> dict[str, Tensor]:
        """Return the place of each row of a block among the vector's rows of each of its plates."""
        found, stride = dict[str, Tensor](), 1
        number = torch.arange(block.num_rows)
        for plate in reversed(block.plates):
            found[plate] = number // stride % self.sizes[plate]
            stride *= self.sizes[plate]
        return found

    def _checked(self, plate: str, index: Tensor) -> Tensor:
        if plate not in self.sizes:
            raise OptionError(
                f"There is no latent in a plate {plate!r}; the plates are {list(self.sizes)}."
            )
        return check_rows(plate, index, self.sizes[plate])

    def table_rows(self, block: PlateBlock, rows: Mapping[str, Tensor]) -> Tensor:
        """Number the rows of a block of this vector among all rows of its block: ``(*b, R)``.

        Args:
            block: The block.
            rows: Numbers of the rows ``(*b, B)`` of plates of which the vector has not all.
        """
        row = torch.zeros(1, dtype=torch.long)
        for plate in block.plates:
            taken = rows.get(plate)
            taken = torch.arange(self.sizes[plate]) if taken is None else taken
            row = (row.unsqueeze(-1) * self.full_sizes[plate] + taken.unsqueeze(-2)).flatten(-2)
        return row
