"""Exceptions of an engine as reasons in words: one that fails costs speed, never the fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_nfvi._engine.program import Unsupported


@contextmanager
def attempt(doing: str) -> Iterator[None]:
    """Make a reason of any exception: an engine that fails costs speed, never the fit.

    Args:
        doing: What the engine was doing, in the words of the reason.

    Raises:
        Unsupported: Something else was raised, which is the cause.
    """
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:  # a release of PyTorch, a compiler, a loader: each in its own way
        raise failed(doing, error) from error


def failed(doing: str, error: Exception) -> Unsupported:
    """Make a reason of an exception: its class, its first line, and where it arose."""
    lines = str(error).strip().splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    told = f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
    return Unsupported(f"it failed while it was {doing}: {told}{where}")
