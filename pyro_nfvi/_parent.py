"""The process that started this one, asked for before the seconds that importing PyTorch takes."""

from __future__ import annotations

import os

_FIRST = {"pid": os.getppid()}


def first_parent() -> int:
    """Return the parent's number as it was when the package began to be imported.

    A process whose parent ends is handed to another one: a number that has changed tells it.
    """
    return _FIRST["pid"]


def _after_fork() -> None:
    _FIRST["pid"] = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
