"""Expressions of the generated code: what is computed at one index of a loop.

Expressions are interned: equal ones are one object, so that a value used twice in a loop is
found and computed once. Indices are affine in the loop variables as far as possible, because
fusing two loops asks whether two accesses hit the same element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.program import Unsupported

CTYPES: dict[torch.dtype, str] = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
#: Operations up to which a formula is computed again rather than written to memory and read back.
RECOMPUTE_COST = 2
_FLOATS = ("float", "double")
#: One of two values.
CHOICE = "({0}?{1}:{2})"


def ctype(dtype: torch.dtype) -> str:
    """Name of a dtype in C++.

    Raises:
        Unsupported: Half precision, complex numbers and the like.
    """
    if dtype not in CTYPES:
        raise Unsupported(f"tensors of {dtype}")
    return CTYPES[dtype]


@dataclass(frozen=True)
class Ix:
    """An index: a constant plus multiples of loop variables and of integer expressions."""

    terms: tuple[tuple[Any, int], ...] = ()  # (name of a variable or an Expr, coefficient)
    const: int = 0

    @staticmethod
    def var(name: str) -> Ix:
        """Return the index that is a loop variable."""
        return Ix(((name, 1),))

    def __add__(self, other: Ix | int) -> Ix:
        if isinstance(other, int):
            return Ix(self.terms, self.const + other)
        merged = dict(self.terms)
        for atom, k in other.terms:
            merged[atom] = merged.get(atom, 0) + k
        terms = tuple(sorted(((a, k) for a, k in merged.items() if k), key=_order))
        return Ix(terms, self.const + other.const)

    def __mul__(self, factor: int) -> Ix:
        if factor == 0:
            return Ix()
        return Ix(tuple((a, k * factor) for a, k in self.terms), self.const * factor)

    def coefficient(self, name: str) -> int:
        """Multiple of a loop variable."""
        return next((k for a, k in self.terms if a == name), 0)


def _order(term: tuple[Any, int]) -> tuple[int, str]:
    atom = term[0]
    return (0, atom) if isinstance(atom, str) else (1, f"{atom.number:09d}")


class Expr:
    """A node: ``op`` is ``lit``, ``load``, ``ix``, or a template of C++ with ``{0}``, ``{1}``.

    Attributes:
        cost: Operations in the tree; 0 for what is only read.
        serial: Whether something in it keeps a loop from being vectorised.
    """

    __slots__ = ("args", "cost", "ctype", "number", "op", "serial")

    def __init__(self, op: str, args: tuple[Any, ...], kind: str, number: int) -> None:
        self.op, self.args, self.ctype, self.number = op, args, kind, number
        self.cost, self.serial = 0, False

    @property
    def literal(self) -> bool | int | float | None:
        """The value, if it is known when the code is generated."""
        return self.args[0] if self.op == "lit" else None

    @property
    def inputs(self) -> tuple[Expr, ...]:
        """The expressions it is made of, those inside indices included."""
        if self.op == "lit":
            return ()
        if self.op in ("load", "ix"):
            return tuple(a for a, _ in self.args[-1].terms if isinstance(a, Expr))
        return self.args


class Pool:
    """Makes expressions, each once, and folds what is known."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Expr] = {}

    def _make(self, op: str, args: tuple[Any, ...], kind: str) -> Expr:
        # -0.0, 0.0, 0 and False are equal keys but other literals; nan is no key at all.
        key = (op, kind, repr(args[0]) if op == "lit" else args)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Expr(op, args, kind, len(self._known))
        return found

    def lit(self, value: bool | int | float, kind: str) -> Expr:  # noqa: FBT001
        """Return a literal of the given type."""
        if kind == "bool":
            value = bool(value)
        elif kind in _FLOATS:
            value = float(value)
        else:
            value = int(value)
        return self._make("lit", (value,), kind)

    def load(self, buffer: Buffer, index: Ix) -> Expr:
        """Return the element of a buffer at an index."""
        made = self._make("load", (buffer, index), buffer.ctype)
        made.cost = sum(1 + e.cost for e in made.inputs)
        made.serial = any(e.serial for e in made.inputs)
        return made

    def index(self, index: Ix) -> Expr:
        """Return an index as an integer value."""
        if not index.terms:
            return self.lit(index.const, "int64_t")
        made = self._make("ix", (index,), "int64_t")
        made.cost = 1
        return made

    def op(
        self,
        template: str,
        *args: Expr,
        kind: str,
        cost: int = 1,
        serial: bool = False,
    ) -> Expr:
        """Return an operation on expressions."""
        made = self._make(template, args, kind)
        made.cost = cost + sum(a.cost for a in args)
        made.serial = serial or any(a.serial for a in args)
        return made

    def cast(self, x: Expr, kind: str) -> Expr:
        """Return x in another type, as torch converts."""
        if x.ctype == kind:
            return x
        value = x.literal
        if value is not None and (kind == "bool" or math.isfinite(value)):
            return self.lit(value, kind)
        if kind == "bool":
            return self.op("({0}!=0)", x, kind=kind)
        return self.op(f"(({kind}){{0}})", x, kind=kind, cost=0)

    # ------------------------------------------------------- arithmetic with known operands

    def add(self, a: Expr, b: Expr) -> Expr:
        """Sum of two expressions of one type."""
        if a.literal == 0:
            return b
        if b.literal == 0:
            return a
        template = "({0}|{1})" if a.ctype == "bool" else "({0}+{1})"
        return self._arith(template, a, b, lambda x, y: x + y)

    def sub(self, a: Expr, b: Expr) -> Expr:
        """Difference."""
        if b.literal == 0:
            return a
        if a.literal == 0 and a.ctype != "bool":
            return self.neg(b)
        return self._arith("({0}-{1})", a, b, lambda x, y: x - y)

    def neg(self, a: Expr) -> Expr:
        """Minus a."""
        if a.literal is not None:
            return self.lit(-a.literal, a.ctype)
        if a.op == "(-{0})":
            negated: Expr = a.args[0]
            return negated
        return self.op("(-{0})", a, kind=a.ctype, cost=0)

    def mul(self, a: Expr, b: Expr) -> Expr:
        """Product. ``0 x`` stays: it is NaN where x is."""
        for one, other in ((a, b), (b, a)):
            if one.literal == 1:
                return other
            if one.literal == -1 and one.ctype != "bool":
                return self.neg(other)
        template = "({0}&{1})" if a.ctype == "bool" else "({0}*{1})"
        return self._arith(template, a, b, lambda x, y: x * y)

    def div(self, a: Expr, b: Expr) -> Expr:
        """Quotient of floating numbers."""
        if b.literal == 1:
            return a
        inverse = self.inverse(b)
        if inverse is not None:
            return self.mul(a, inverse)
        return self.op("({0}/{1})", a, b, kind=a.ctype, cost=2)

    def inverse(self, b: Expr) -> Expr | None:
        """1 / b of a literal whose inverse is a normal number, in single precision too."""
        value = b.literal
        if b.ctype not in _FLOATS or not value or not 1e-37 < abs(value) < 1e37:
            return None
        return self.lit(1 / value, b.ctype)

    def where(self, c: Expr, a: Expr, b: Expr) -> Expr:
        """A where c, else b."""
        if c.literal is not None:
            return a if c.literal else b
        if a is b:
            return a
        return self.op(CHOICE, c, a, b, kind=a.ctype)

    def _arith(self, template: str, a: Expr, b: Expr, fold: Any) -> Expr:
        # Integers only: floats would be folded in double, where torch works in float.
        if a.ctype == "int64_t" and a.literal is not None and b.literal is not None:
            return self.lit(fold(a.literal, b.literal), a.ctype)
        return self.op(template, a, b, kind=a.ctype)
