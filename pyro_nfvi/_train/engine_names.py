"""The names of engines that users type."""

from __future__ import annotations

#: What ``engine=`` takes.
ENGINES = ("auto", "compiled", "eager")
