"""Block-arrow matrices: dense in a few coordinates, and a small block for each row of a plate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi.errors import OptionError


@dataclass(frozen=True, eq=False)
class ArrowBlock:
    """R rows of d coordinates each, which depend on one row of each of their parents.

    Attributes:
        positions: Places of the coordinates in the vector ``(R, d)``.
        parents: For each parent its index among the blocks, and the row ``(R,)`` of it that each
            row depends on; parents come before their children.
    """

    positions: Tensor
    parents: tuple[tuple[int, Tensor], ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows R."""
        return self.positions.shape[0]

    @property
    def size(self) -> int:
        """Coordinates d of each row."""
        return self.positions.shape[1]


@dataclass(frozen=True, eq=False)
class BlockArrow:
    r"""A structure of vectors: a tree of blocks, in which rows of one block do not interact.

    The globals are a block of one row and parent of all others. The parents of a block are a
    chain: a row of a county depends on the globals, one of a household on its county and on the
    globals. Matrices of this structure have products, inverses and determinants without fill-in.

    Attributes:
        blocks: The blocks, parents first; together they have each coordinate once.
        back: Where each coordinate of the vector stands in the blocks one after the other ``(D,)``;
            None where it stands in its place.

    Example:
        >>> import torch
        >>> tree = BlockArrow.of(torch.tensor([0, 1]), torch.tensor([[2], [3], [4]]))
        >>> tree.dim, [block.rows for block in tree.blocks]
        (5, [1, 3])
    """

    blocks: tuple[ArrowBlock, ...]
    back: Tensor | None

    @classmethod
    def tree(cls, blocks: Sequence[ArrowBlock]) -> BlockArrow:
        """Make a structure of blocks.

        Raises:
            OptionError: A coordinate is missing or doubled, or the parents of a block are no
                chain.
        """
        places = torch.cat([block.positions.flatten() for block in blocks])
        order = torch.arange(len(places), device=places.device)
        if not torch.equal(places.sort().values, order):
            raise OptionError(
                "A block arrow needs every coordinate in exactly one block; got "
                f"{len(places)} places, of which some are missing or doubled."
            )
        made = cls.known(blocks)
        for place, block in enumerate(made.blocks):
            made._check_chain(place, block)
        return made

    @classmethod
    def known(cls, blocks: Sequence[ArrowBlock]) -> BlockArrow:
        """Make a structure of blocks that are known to fit; parents need not be a chain.

        Without a chain products and inverses hold, and sums over a precision do not.
        """
        places = torch.cat([block.positions.flatten() for block in blocks])
        order = torch.arange(len(places), device=places.device)
        back = torch.empty_like(places)
        back[places] = order
        return cls(tuple(blocks), None if torch.equal(places, order) else back)

    def _check_chain(self, place: int, block: ArrowBlock) -> None:
        indices = [index for index, _ in block.parents]
        for index, rows in block.parents:
            inside = rows.shape == (block.rows,) and 0 <= index < place
            if not (inside and 0 <= int(rows.min()) and int(rows.max()) < self.blocks[index].rows):
                raise OptionError(
                    f"Block {place} of a block arrow needs parents before it, and a row of each "
                    "for every row of its own."
                )
        if not block.parents:
            return
        if indices != sorted(set(indices)):
            raise OptionError(f"Block {place} of a block arrow has its parents out of order.")
        deepest, at = block.parents[-1]
        above = dict(self.blocks[deepest].parents)
        same = set(indices) == {*above, deepest} and all(
            torch.equal(rows, above[index][at]) for index, rows in block.parents[:-1]
        )
        if not same:
            raise OptionError(
                f"The parents of block {place} of a block arrow are no chain: crossed plates have "
                "no such structure. Put the smaller one among the globals."
            )

    @classmethod
    def of(cls, positions: Tensor, *rows: Tensor) -> BlockArrow:
        """Make an arrow of globals ``(G,)`` and blocks ``(R, d)`` that depend on these alone."""
        blocks = [ArrowBlock(positions[None])]
        for one in rows:
            above = torch.zeros(len(one), dtype=torch.long, device=one.device)
            blocks.append(ArrowBlock(one, ((0, above),)))
        return cls.tree(blocks)

    @property
    def dim(self) -> int:
        """Size D of the vector."""
        return sum(block.positions.numel() for block in self.blocks)

    @property
    def num_probes(self) -> int:
        """Coordinates of one row of each block, together: products that show a whole matrix."""
        return sum(block.size for block in self.blocks)

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut vectors ``(*b, D)`` into blocks ``(*b, R, d)``."""
        if self.back is not None:
            return [x[..., block.positions] for block in self.blocks]
        parts = x.split([block.positions.numel() for block in self.blocks], -1)
        return [part.unflatten(-1, one.positions.shape) for part, one in zip(parts, self.blocks)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put blocks ``(*b, R, d)`` together to vectors ``(*b, D)``."""
        joined = torch.cat([part.flatten(-2) for part in parts], -1)
        return joined if self.back is None else joined[..., self.back]


@dataclass(frozen=True, eq=False)
class ArrowFactor:
    r"""A triangular matrix T of a block arrow.

    .. math:: y_b = \sum_p W_{bp}\,y_p + L_b x_b

    for each row of block b, with its rows :math:`y_p` of the parents. With x standard normal, y
    is a Gaussian in which rows of a block are independent given their parents; its precision
    :math:`T^{-\top} T^{-1}` is a block arrow.

    Attributes:
        arrow: The structure.
        trils: L of each block, lower triangular with a positive diagonal ``(R, d, d)``.
        weights: W of each block for each of its parents ``(R, d, d_p)``.

    Cost:
        O(sum of R d (d + d_p)) for each product: linear in rows.

    Example:
        >>> import torch
        >>> tree = BlockArrow.of(torch.tensor([0]), torch.tensor([[1], [2]]))
        >>> factor = ArrowFactor.diagonal(tree, torch.tensor([1.0, 2.0, 3.0]))
        >>> factor.push(torch.ones(3)).tolist(), round(float(factor.log_det), 3)
        ([1.0, 2.0, 3.0], 1.792)
    """

    arrow: BlockArrow
    trils: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def diagonal(cls, arrow: BlockArrow, scale: Tensor) -> ArrowFactor:
        """Make a diagonal one of positive scales ``(D,)``."""
        trils = tuple(torch.diag_embed(part) for part in arrow.split(scale))
        weights = tuple(
            tuple(
                scale.new_zeros(block.rows, block.size, arrow.blocks[index].size)
                for index, _ in block.parents
            )
            for block in arrow.blocks
        )
        return cls(arrow, trils, weights)

    @property
    def log_det(self) -> Tensor:
        """Logarithm of the determinant, in nats."""
        logs = [tril.diagonal(dim1=-2, dim2=-1).log().sum() for tril in self.trils]
        return torch.stack(logs).sum()

    def push(self, x: Tensor) -> Tensor:
        """Apply T to vectors ``(*b, D)``."""
        done: list[Tensor] = []
        for block, tril, weights, part in self._blocks(self.arrow.split(x)):
            out = multiply(tril, part)
            for (index, rows), weight in zip(block.parents, weights, strict=True):
                out = out + along(weight, done[index], rows)
            done.append(out)
        return self.arrow.join(done)

    def solve(self, y: Tensor) -> Tensor:
        """Apply the inverse of T to vectors ``(*b, D)``."""
        parts = self.arrow.split(y)
        done = []
        for block, tril, weights, part in self._blocks(parts):
            rest = part
            for (index, rows), weight in zip(block.parents, weights, strict=True):
                rest = rest - along(weight, parts[index], rows)
            done.append(divide(tril, rest))
        return self.arrow.join(done)

    def pull(self, score: Tensor) -> Tensor:
        """Apply the transpose of T to vectors ``(*b, D)``."""
        parts = self.arrow.split(score)
        for place in reversed(range(len(parts))):
            block = self.arrow.blocks[place]
            for (index, rows), weight in zip(block.parents, self.weights[place], strict=True):
                parts[index] = parts[index] + across(weight, parts[place], rows, parts[index])
        return self.arrow.join([multiply(tril.mT, part) for tril, part in zip(self.trils, parts)])

    def push_score(self, score: Tensor) -> Tensor:
        """Apply the inverse of the transpose of T to vectors ``(*b, D)``."""
        own = [
            divide(tril, part, transposed=True)
            for tril, part in zip(self.trils, self.arrow.split(score))
        ]
        out = list(own)
        for block, mine, weights in zip(self.arrow.blocks, own, self.weights, strict=True):
            for (index, rows), weight in zip(block.parents, weights, strict=True):
                out[index] = out[index] - across(weight, mine, rows, out[index])
        return self.arrow.join(out)

    def _blocks(
        self, parts: Sequence[Tensor]
    ) -> list[tuple[ArrowBlock, Tensor, tuple[Tensor, ...], Tensor]]:
        return list(zip(self.arrow.blocks, self.trils, self.weights, parts, strict=True))

    @property
    def precisions(self) -> Tensor:
        """Diagonal of the precision ``(D,)``: one over squared sds given all others."""
        own = []
        for tril in self.trils:
            eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
            own.append(torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False))
        out = [inverse.square().sum(-2) for inverse in own]
        for block, inverse, weights in zip(self.arrow.blocks, own, self.weights, strict=True):
            for (index, rows), weight in zip(block.parents, weights, strict=True):
                out[index] = out[index].index_add(0, rows, (inverse @ weight).square().sum(-2))
        return self.arrow.join(out)

    @property
    def variances(self) -> Tensor:
        """Marginal variances ``(D,)``; O(R d D_p^2) with all D_p coordinates above a row."""
        spread: list[list[Tensor]] = []  # T's rows of each block, for itself and each parent
        out = []
        for block, tril, weights in zip(self.arrow.blocks, self.trils, self.weights, strict=True):
            known = [index for index, _ in block.parents]
            parts = [
                tril.new_zeros(block.rows, block.size, self.arrow.blocks[i].size) for i in known
            ]
            for (index, rows), weight in zip(block.parents, weights, strict=True):
                inner = [i for i, _ in self.arrow.blocks[index].parents]
                for place, part in zip([*inner, index], spread[index], strict=True):
                    at = known.index(place)
                    parts[at] = parts[at] + weight @ part[rows]
            parts.append(tril)
            spread.append(parts)
            out.append(sum((part.square().sum(-1) for part in parts), tril.new_zeros(())))
        return self.arrow.join(out)

    def to(self, like: Tensor) -> ArrowFactor:
        """Return the same numbers in the dtype and on the device of ``like``."""
        blocks = tuple(
            ArrowBlock(
                block.positions.to(like.device),
                tuple((index, rows.to(like.device)) for index, rows in block.parents),
            )
            for block in self.arrow.blocks
        )
        back = None if self.arrow.back is None else self.arrow.back.to(like.device)
        trils = tuple(tril.to(like) for tril in self.trils)
        weights = tuple(tuple(one.to(like) for one in mine) for mine in self.weights)
        return ArrowFactor(BlockArrow(blocks, back), trils, weights)

    def scaled(self, units: Tensor) -> ArrowFactor:
        """Return the factor of ``units (D,)`` times the same numbers."""
        sizes = self.arrow.split(units)
        trils = tuple(size.unsqueeze(-1) * tril for size, tril in zip(sizes, self.trils))
        weights = tuple(
            tuple(
                size.unsqueeze(-1) * weight / sizes[index][rows].unsqueeze(-2)
                for (index, rows), weight in zip(block.parents, mine, strict=True)
            )
            for block, size, mine in zip(self.arrow.blocks, sizes, self.weights, strict=True)
        )
        return ArrowFactor(self.arrow, trils, weights)


# --------------------------------------------------------------------------- products by rows


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a matrix of each row ``(R, d, k)`` to its coordinates ``(*b, R, k)``."""
    if matrix.shape[-1] == 1:
        return matrix[..., 0] * x
    if matrix.shape[0] == 1:
        return (x.squeeze(-2) @ matrix[0].mT).unsqueeze(-2)
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def divide(tril: Tensor, x: Tensor, *, transposed: bool = False) -> Tensor:
    """Solve with a triangular matrix of each row ``(R, d, d)``, or its transpose."""
    if tril.shape[-1] == 1:
        return x / tril[..., 0]
    matrix, upper = (tril.mT, True) if transposed else (tril, False)
    flat = x.reshape(-1, *x.shape[-2:]).permute(1, 2, 0)
    found = torch.linalg.solve_triangular(matrix, flat, upper=upper)
    return found.permute(2, 0, 1).reshape(x.shape)


def along(weight: Tensor, above: Tensor, rows: Tensor) -> Tensor:
    """Apply weights ``(R, d, k)`` to the rows of a parent ``(*b, R_p, k)`` that they belong to."""
    if above.shape[-2] == 1:  # the globals: one product of matrices
        flat = above.squeeze(-2) @ weight.flatten(0, 1).mT
        return flat.unflatten(-1, weight.shape[:2])
    return multiply(weight, above.index_select(-2, rows))


def across(weight: Tensor, below: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Apply transposed weights to rows ``(*b, R, d)`` and sum for each of a parent's rows."""
    if like.shape[-2] == 1:
        return (below.flatten(-2) @ weight.flatten(0, 1)).unsqueeze(-2)
    zero = torch.zeros_like(like)
    return zero.index_add(-2, rows, multiply(weight.mT, below))
