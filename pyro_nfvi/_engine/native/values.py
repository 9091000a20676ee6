"""Values of lowered nodes: in memory, or lazy (a formula that is computed where it is read)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.expressions import Expr, Ix, Pool

Shape: TypeAlias = tuple[int, ...]
Loader: TypeAlias = Callable[[tuple[Ix, ...]], Expr]


def contiguous(shape: Sequence[int]) -> Shape:
    """Strides of a dense array, last axis fastest."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.insert(0, step)
        step *= max(n, 1)
    return tuple(strides)


@dataclass(frozen=True, eq=False)
class BufVal:
    """A strided window of a buffer."""

    buffer: Buffer
    shape: Shape
    strides: Shape
    offset: int = 0
    pool: Pool = field(repr=False, default_factory=Pool)

    @property
    def ctype(self) -> str:
        """Type of the elements."""
        return self.buffer.ctype

    def at(self, index: Sequence[Ix]) -> Ix:
        """Return the place of an element in the buffer."""
        place = Ix(const=self.offset)
        for i, step, n in zip(index, self.strides, self.shape):
            if n != 1 and step:
                place = place + i * step
        return place

    def load(self, index: tuple[Ix, ...]) -> Expr:
        """Return the element at an index."""
        return self.pool.load(self.buffer, self.at(index))

    def window(self, shape: Shape, strides: Shape, offset: int = 0) -> BufVal:
        """Return another window of the same buffer; ``offset`` counts from this one's start."""
        return BufVal(self.buffer, shape, strides, self.offset + offset, self.pool)

    @property
    def dense(self) -> bool:
        """Tell whether the elements are contiguous, in row-major order."""
        expected = contiguous(self.shape)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected))

    @property
    def pointer(self) -> str:
        """Address of the first element, in C++."""
        return f"({self.buffer.name}+{self.offset})" if self.offset else self.buffer.name


def remembered(load: Loader) -> Loader:
    """Return the loader with a memory, since a formula may be asked for one index repeatedly."""
    known: dict[tuple[Ix, ...], Expr] = {}

    def look_up(index: tuple[Ix, ...]) -> Expr:
        found = known.get(index)
        if found is None:
            found = known[index] = load(index)
        return found

    return look_up


@dataclass(frozen=True, eq=False)
class LazyVal:
    """A formula for each index, not computed yet."""

    shape: Shape
    ctype: str
    load: Loader

    def probe(self) -> Expr:
        """Return the expression at a general index, to look at what it costs."""
        return self.load(tuple(Ix.var(f"q{d}") for d in range(len(self.shape))))


@dataclass(frozen=True, eq=False)
class HeldVal:
    """A tensor that PyTorch holds, of a type that the code has no name for (complex numbers).

    Attributes:
        place: Its number.
    """

    place: int


Val: TypeAlias = BufVal | LazyVal


def distinct_shape(value: Val) -> Shape:
    """Return the shape with length 1 along each axis on which the value does not depend."""
    found: set[Any] = set()
    stack, seen = [value.load(tuple(Ix.var(f"q{d}") for d in range(len(value.shape))))], set[int]()
    while stack:
        one = stack.pop()
        if one.number not in seen:
            seen.add(one.number)
            if one.op in ("load", "ix"):
                found.update(atom for atom, _ in one.args[-1].terms)
            stack.extend(one.inputs)
    return tuple(n if f"q{d}" in found else 1 for d, n in enumerate(value.shape))


def view_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides of the same elements in a new shape, or None if they need a copy."""
    if prod(shape) == 0:
        return contiguous(new)
    old = [(n, s) for n, s in zip(shape, strides) if n != 1]
    # Merge axes that follow each other without a gap.
    merged: list[tuple[int, int]] = []
    for n, s in old:
        if merged and merged[-1][1] == s * n:
            merged[-1] = (merged[-1][0] * n, s)
        else:
            merged.append((n, s))
    result: list[int] = []
    rest = list(merged)
    left, step = rest.pop() if rest else (1, 1)
    for n in reversed(new):
        if n == 1:
            result.insert(0, 0)
            continue
        if left == 1 and rest:
            left, step = rest.pop()
        if left % n:
            return None
        result.insert(0, step)
        left //= n
        step *= n
    return tuple(result)
