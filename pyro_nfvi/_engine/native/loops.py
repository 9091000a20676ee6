"""Statements, and loops that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.expressions import Expr, Ix
from pyro_nfvi._engine.native.values import BufVal, Shape

#: Iterations from which strided accesses get a loop of their own: in shorter ones they cost little.
_STRIDED_FROM = 8
#: Statements that one loop takes at most: so that their values stay in registers.
_MAX_FUSED = 40


@dataclass(eq=False)
class Statement:
    """``target[place] = value`` over a nest of loops, or a sum over some of them.

    Attributes:
        sizes: Length of each loop; the variables are ``i0``, ``i1``, ...
        target: Where the result goes.
        place: Index into the target; it does not vary along the reduced loops.
        value: What is stored or summed.
        reduced: Loops that are summed over.
        how: ``store``, ``sum``, ``max``, ``min``, ``prod``, ``all``, ``any``.
        partial: Other statements write other parts of the same target.
    """

    sizes: tuple[int, ...]
    target: Buffer
    place: Ix
    value: Expr
    reduced: frozenset[int] = frozenset()
    how: str = "store"
    partial: bool = False

    @property
    def serial(self) -> bool:
        """Tell whether its loop cannot be vectorised."""
        innermost = len(self.sizes) - 1 in self.reduced
        extreme = self.how not in ("store", "sum", "all", "any")
        return self.value.serial or (extreme and innermost)

    @property
    def apart(self) -> bool:
        """Tell whether its memory accesses are strided, which would slow down a shared loop."""
        if not self.sizes or self.sizes[-1] < _STRIDED_FROM:
            return False
        inner = f"i{len(self.sizes) - 1}"
        steps = [load.args[1] for load in loads(self.value)] + [self.place]
        return any(abs(step.coefficient(inner)) > 1 for step in steps)


@dataclass(eq=False)
class Call:
    """A piece of C++ that is no loop of ours: a matrix product, a factorisation, a scan."""

    text: str
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]


@dataclass(eq=False)
class Group:
    """Statements in one nest of loops, or one call."""

    sizes: tuple[int, ...]
    body: list[Statement | Call] = field(default_factory=list)
    serial: bool = False
    apart: bool = False
    reads: set[Buffer] = field(default_factory=set)
    writes: set[Buffer] = field(default_factory=set)

    @property
    def call(self) -> Call | None:
        """The call, if it is one."""
        return self.body[0] if isinstance(self.body[0], Call) else None

    @property
    def statements(self) -> list[Statement]:
        """The statements of a loop."""
        return [one for one in self.body if isinstance(one, Statement)]


def loads(value: Expr, seen: set[int] | None = None) -> Iterable[Expr]:
    """Every distinct load in an expression, those of its indices included."""
    seen = set() if seen is None else seen
    stack = [value]
    while stack:
        one = stack.pop()
        if one.number in seen:
            continue
        seen.add(one.number)
        if one.op == "load":
            yield one
        stack.extend(one.inputs)


def _fits(group: Group, new: Statement, needed: dict[Buffer, list[Ix]]) -> bool:
    """Tell whether a statement may be fused: it reads the group's results at its own index only."""
    if (
        group.sizes != new.sizes
        or len(group.body) >= _MAX_FUSED
        or group.serial != new.serial
        or group.apart != new.apart
    ):
        return False
    for old in group.statements:
        if old.target in needed:
            if old.how != "store" or old.partial:
                return False
            if any(place != old.place for place in needed[old.target]):
                return False
        if old.target is new.target and not (old.partial and new.partial):
            return False
    return True


def fuse(body: Sequence[Statement | Call]) -> list[Group]:
    """Put statements into as few loops as their order allows."""
    groups: list[Group] = []
    writer: dict[Buffer, int] = {}  # the last group that writes a buffer
    filler: dict[Buffer, int] = {}  # the last group that writes all of it
    by_sizes: dict[tuple[int, ...], list[int]] = {}
    for new in body:
        if isinstance(new, Call):
            group = Group((), [new], True, False, set(new.reads), set(new.writes))
            groups.append(group)
            for buffer in new.writes:
                writer[buffer] = filler[buffer] = len(groups) - 1
            continue
        needed: dict[Buffer, list[Ix]] = {}
        for load in loads(new.value):
            needed.setdefault(load.args[0], []).append(load.args[1])
        for atom, _ in new.place.terms:
            if isinstance(atom, Expr):
                for load in loads(atom):
                    needed.setdefault(load.args[0], []).append(load.args[1])
        first = max((writer.get(buffer, -1) for buffer in needed), default=-1)
        before = filler if new.partial else writer
        first = max(first, before.get(new.target, -1))
        chosen = -1
        for k in by_sizes.get(new.sizes, ()):
            if k >= first and _fits(groups[k], new, needed):
                # With its producer if it can be, so that the value stays in a register.
                chosen = k
                break
        if chosen < 0:
            chosen = len(groups)
            groups.append(Group(new.sizes, [], new.serial, new.apart))
            by_sizes.setdefault(new.sizes, []).append(chosen)
        group = groups[chosen]
        group.body.append(new)
        group.reads |= set(needed)
        group.writes.add(new.target)
        writer[new.target] = max(chosen, writer.get(new.target, -1))
        if not new.partial:
            filler[new.target] = chosen
    return groups


def order_of_loops(
    axes: list[int],
    shape: Shape,
    load: Callable[[tuple[Ix, ...]], Expr],
    target: BufVal,
    reduced: frozenset[int],
) -> list[int]:
    """Put innermost the axis along which most accesses are dense; the rest stays in order."""
    if len(axes) < 2:
        return axes
    names = {d: f"i{d}" for d in axes}
    index = tuple(Ix.var(names[d]) if d in names else Ix() for d in range(len(shape)))
    steps: list[Ix] = [target.at([i for d, i in enumerate(index) if d not in reduced])] * 2
    seen: set[int] = set()
    stack = [load(index)]
    while stack:
        one = stack.pop()
        if one.number not in seen:
            seen.add(one.number)
            if one.op == "load":
                steps.append(one.args[1])
            stack.extend(one.inputs)

    def worth(d: int) -> float:
        good = 0.0
        for step in steps:
            k = abs(step.coefficient(names[d]))
            good += 1.0 if k == 1 else 0.8 if k == 0 else 0.0
        return good * min(shape[d], 8)  # rows of a block of 8 fill a vector

    inner = max(axes, key=lambda d: (worth(d), d))
    return [d for d in axes if d != inner] + [inner]
