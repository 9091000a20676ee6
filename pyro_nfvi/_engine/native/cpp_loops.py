"""From loops to C++."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.expressions import CHOICE, Expr, Ix
from pyro_nfvi._engine.native.loops import Group, Statement

#: Start of a reduction, and how a value joins it.
_REDUCE = {
    "sum": ("0", "{a}+={v};"),
    "prod": ("1", "{a}*={v};"),
    "max": ("-INF", "{a}=m_max({a},({t}){v});"),
    "min": ("INF", "{a}=m_min({a},({t}){v});"),
    "all": ("1", "{a}&=(int)({v});"),
    "any": ("0", "{a}|=(int)({v});"),
}
_CLAUSE = {"sum": "+", "prod": "*", "all": "&", "any": "|"}
#: Iterations from which a loop is marked for vectorisation: a vector holds 4 doubles.
_SIMD_FROM = 4


def emit_group(group: Group, without: set[Buffer]) -> str:
    """Write the loops of a group; results in ``without`` stay in registers."""
    return _Writer(group, without).text()


def _literal(value: bool | int | float, kind: str) -> str:  # noqa: FBT001
    if kind == "bool":
        return "true" if value else "false"
    if kind not in ("float", "double"):
        return f"(({kind}){int(value)}LL)"
    if math.isnan(value):
        return f"std::numeric_limits<{kind}>::quiet_NaN()"
    if math.isinf(value):
        sign = "-" if value < 0 else ""
        return f"({sign}std::numeric_limits<{kind}>::infinity())"
    text = repr(float(value))
    text = f"{text}f" if kind == "float" else text
    if kind == "float" and abs(value) > 3.4028234663852886e38:
        return f"(({kind}){float(value)!r})"
    return f"({text})" if value < 0 else text


class _Writer:
    def __init__(self, group: Group, without: set[Buffer]) -> None:
        self.group, self.without = group, without
        self.sizes = list(group.sizes)
        self.made = {
            one.target: one for one in group.statements if one.how == "store" and not one.partial
        }
        self.dropped: set[str] = set()
        self.length = {f"i{d}": n for d, n in enumerate(self.sizes)}
        self._levels: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._lines: list[list[str]] = []
        self._merge()

    # -------------------------------------------------------------------------- whole loops

    def _all_indices(self) -> Iterator[Ix]:
        seen: set[int] = set()
        stack: list[Expr] = []
        for one in self.group.statements:
            yield one.place
            stack.append(one.value)
            stack.extend(a for a, _ in one.place.terms if isinstance(a, Expr))
        while stack:
            e = stack.pop()
            if e.number in seen:
                continue
            seen.add(e.number)
            if e.op in ("load", "ix"):
                yield e.args[-1]
            stack.extend(e.inputs)

    def _merge(self) -> None:
        """Run two loops as one where no access can tell."""
        indices = list(self._all_indices())
        inner = len(self.sizes) - 1
        for d in range(len(self.sizes) - 2, -1, -1):
            one, other = f"i{d}", f"i{inner}"
            whole = self.length[other]
            alike = all((d in s.reduced) == (inner in s.reduced) for s in self.group.statements)
            if alike and all(i.coefficient(one) == i.coefficient(other) * whole for i in indices):
                # The inner variable runs over both; the outer one drops out of all indices.
                self.length[other] = whole * self.length[one]
                self.dropped.add(one)
            else:
                inner = d
        self.order = [f"i{d}" for d in range(len(self.sizes)) if f"i{d}" not in self.dropped]
        self.depth = {name: k + 1 for k, name in enumerate(self.order)}

    def text(self) -> str:
        group = self.group
        levels = len(self.order)
        self._lines = [[] for _ in range(levels + 1)]
        after: list[list[str]] = [[] for _ in range(levels + 1)]
        before: list[str] = []
        clauses: dict[str, list[str]] = {}
        self._count_uses()
        for number, one in enumerate(group.statements):
            value = self._write(one.value)
            place = self._place(one)
            target = f"{one.target.name}[{place}]"
            if one.how == "store":
                if one.target in self.without and not one.partial:
                    continue
                self._lines[levels].append(f"{target}={value};")
                continue
            kind = one.target.ctype
            start, join = _REDUCE[one.how]
            start = start.replace("INF", f"std::numeric_limits<{kind}>::infinity()")
            if kind not in ("float", "double") and one.how in ("max", "min"):
                bound = "lowest" if one.how == "max" else "max"
                start = f"std::numeric_limits<{kind}>::{bound}()"
            held = "int" if one.how in ("all", "any") else kind
            over = {f"i{d}" for d in one.reduced} - self.dropped
            suffix = levels
            while suffix and self.order[suffix - 1] in over:
                suffix -= 1
            rest = over - set(self.order[suffix:])
            if suffix == levels:  # innermost loop is kept: sum into memory
                self._lines[levels].append(join.format(a=target, v=value, t=kind))
            else:
                name = f"a{number}"
                self._lines[suffix].append(f"{held} {name}={start};")
                self._lines[levels].append(join.format(a=name, v=value, t=kind))
                if one.how in _CLAUSE:
                    clauses.setdefault(_CLAUSE[one.how], []).append(name)
                ending = join.format(a=target, v=name, t=kind) if rest else f"{target}={name};"
                after[suffix].append(ending)
            if rest or suffix == levels:
                before.append(self._fill(one, over, start, place, target))
        return self._assemble(before, after, clauses)

    def _assemble(
        self, before: list[str], after: list[list[str]], clauses: Mapping[str, list[str]]
    ) -> str:
        out = list(before)
        levels = len(self.order)
        out.append("{")
        out += self._lines[0]
        for k, name in enumerate(self.order):
            last = k == levels - 1
            if last and not self.group.serial and self.length[name] >= _SIMD_FROM:
                extra = "".join(f" reduction({s}:{','.join(a)})" for s, a in clauses.items())
                out.append(f"\n#pragma omp simd{extra}\n")
            n = self.length[name]
            out.append(f"for(int64_t {name}=0;{name}<{n};{name}++){{")
            out += self._lines[k + 1]
        for k in range(levels, 0, -1):
            out += after[k]
            out.append("}")
        out += after[0]
        out.append("}")
        return "".join(out)

    def _fill(self, one: Statement, over: set[str], start: str, place: str, target: str) -> str:
        """Write the loops that start a sum into memory."""
        del one, place
        loops = "".join(
            f"for(int64_t {name}=0;{name}<{self.length[name]};{name}++) "
            for name in self.order
            if name not in over
        )
        return f"{loops}{target}={start};"

    # -------------------------------------------------------------------------- expressions

    def _resolve(self, e: Expr) -> Expr:
        """Return the value itself where the loop has just computed it."""
        while e.op == "load" and e.args[0] in self.made:
            e = self.made[e.args[0]].value
        return e

    def _count_uses(self) -> None:
        self.uses: dict[int, int] = {}
        stack: list[Expr] = []
        for one in self.group.statements:
            stack.append(one.value)
            stack.extend(a for a, _ in one.place.terms if isinstance(a, Expr))
        while stack:
            e = self._resolve(stack.pop())
            self.uses[e.number] = self.uses.get(e.number, 0) + 1
            if self.uses[e.number] == 1:
                stack.extend(e.inputs)

    def _level(self, e: Expr) -> int:
        """Return how many loops deep an expression must be computed."""
        e = self._resolve(e)
        found = self._levels.get(e.number)
        if found is None:
            found = 0
            if e.op in ("load", "ix"):
                for atom, _ in e.args[-1].terms:
                    if isinstance(atom, str) and atom in self.depth:
                        found = max(found, self.depth[atom])
            for inner in e.inputs:
                found = max(found, self._level(inner))
            self._levels[e.number] = found
        return found

    def _write(self, e: Expr, parent: int | None = None) -> str:
        e = self._resolve(e)
        if e.op == "lit":
            return _literal(e.args[0], e.ctype)
        name = self._names.get(e.number)
        if name is not None:
            return name
        level = self._level(e)
        if e.op == "load":
            text = f"{e.args[0].name}[{self._index(e.args[1], level)}]"
            if e.ctype == "bool":  # as bytes, for gcc does not vectorise choices by a bool
                text = f"(((const uint8_t*){e.args[0].name})[{self._index(e.args[1], level)}]!=0)"
        elif e.op == "ix":
            text = f"({self._index(e.args[0], level)})"
        else:
            text = e.op.format(*(self._operand(e, a, level) for a in e.args))
        here = len(self.order) if parent is None else parent
        if self.uses[e.number] > 1 or level < here:
            name = f"t{len(self._names)}"
            self._names[e.number] = name
            self._lines[level].append(f"const {e.ctype} {name}={text};")
            return name
        return text

    def _operand(self, e: Expr, operand: Expr, level: int) -> str:
        """Write an operand; those of a choice come before it, or a call could not be vectorised."""
        text = self._write(operand, level)
        operand = self._resolve(operand)
        if e.op != CHOICE or "m_" not in text:
            return text
        name = self._names[operand.number] = f"t{len(self._names)}"
        self._lines[level].append(f"const {operand.ctype} {name}={text};")
        return name

    def _place(self, one: Statement) -> str:
        return self._index(one.place, len(self.order))

    def _index(self, index: Ix, level: int) -> str:
        parts: list[str] = []
        for atom, k in index.terms:
            if isinstance(atom, str):
                if atom in self.dropped:
                    continue
                text = atom
            else:
                text = self._write(atom, level)
            parts.append(text if k == 1 else f"{text}*{k}")
        if index.const or not parts:
            parts.append(str(index.const))
        return "+".join(parts).replace("+-", "-")
