"""Warnings that point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

#: Packages whose lines are never the user's: this one, and those that stand between its lines.
_BETWEEN = frozenset({__name__.split(".")[0], "torch", "pyro", "contextlib", "functools"})


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as of the line that called the package: the innermost one outside of it.

    Lines of PyTorch, Pyro, ``contextlib`` and ``functools`` are passed over too: they call and
    wrap what is called. Where there is no other line, as in a thread, the outermost one is named.
    """
    frame = sys._getframe(1)
    while _is_between(frame) and frame.f_back is not None:
        frame = frame.f_back
    # As ``warnings.warn`` does for a frame counted by hand, with the registry of its module, in
    # which Python remembers which warnings were shown.
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=names.get("__name__") or "<unknown>",
        registry=names.setdefault("__warningregistry__", {}),
    )


def _is_between(frame: FrameType) -> bool:
    # By names of modules: methods that dataclasses generate have no file. The examples of a
    # docstring bear the name of its module, but are a user's lines.
    package = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return package in _BETWEEN and not frame.f_code.co_filename.startswith("<doctest ")
