"""Memory plan: results in registers, or in memory that is reused once its value is dead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.loops import Group


class Slot:
    """Memory for buffers that are never alive together."""

    def __init__(self, name: str, kind: str, size: int) -> None:
        self.name, self.ctype, self.size = name, kind, size


def unread(groups: Sequence[Group], outputs: Iterable[Buffer]) -> set[Buffer]:
    """Find the buffers that need no memory: read only in the loop that computes them."""
    readers: dict[Buffer, set[int]] = {}
    for k, group in enumerate(groups):
        for buffer in _reads(group):
            readers.setdefault(buffer, set()).add(k)
    kept = set(outputs)
    found: set[Buffer] = set()
    for k, group in enumerate(groups):
        for one in group.statements:
            plain = one.how == "store" and not one.partial and one.target not in kept
            if plain and not one.target.given and readers.get(one.target, set()) <= {k}:
                found.add(one.target)
    return found


def _reads(group: Group) -> set[Buffer]:
    call = group.call
    return set(call.reads) if call is not None else group.reads


def place(groups: Sequence[Group], without: set[Buffer]) -> tuple[dict[Buffer, Slot], list[Slot]]:
    """Give every buffer that needs memory a slot."""
    last: dict[Buffer, int] = {}
    for k, group in enumerate(groups):
        for buffer in _reads(group) | group.writes:
            last[buffer] = k
    where: dict[Buffer, Slot] = {}
    slots: list[Slot] = []
    free: list[Slot] = []
    for k, group in enumerate(groups):
        for buffer in sorted(group.writes, key=lambda b: b.name):
            if buffer.given or buffer in where or buffer in without:
                continue
            fitting = [s for s in free if s.ctype == buffer.ctype]
            if fitting:
                slot = min(fitting, key=lambda s: (abs(s.size - buffer.size), s.name))
                free.remove(slot)
                slot.size = max(slot.size, buffer.size)
            else:
                slot = Slot(f"s{len(slots)}", buffer.ctype, buffer.size)
                slots.append(slot)
            where[buffer] = slot
        for buffer, slot in where.items():
            if last[buffer] == k and slot not in free:
                free.append(slot)
    return where, slots
