"""Stretches of memory that the generated code names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Buffer:
    """A stretch of memory with a name in the generated code.

    Attributes:
        name: What the code calls it.
        size: Numbers in it.
        ctype: Type of each.
        given: Inputs, outputs and constants, which are not ours to place.
    """

    name: str
    size: int
    ctype: str
    given: bool = False
