"""The C interface of a compiled step."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pyro_nfvi.engine.program import Unsupported

__all__ = ["Context", "FitStruct", "GroupStruct", "OuterStruct", "blas", "load", "pointers"]

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Context(ctypes.Structure):
    """``struct Ctx`` of base.h."""

    _fields_ = [(name, _P) for name in ("inputs", "out", "data", "work", "sgemm", "dgemm", "eager")]


class GroupStruct(ctypes.Structure):
    """``struct Group`` of runtime.h."""

    _fields_ = [
        *((name, _D) for name in ("beta1", "beta2", "eps", "decay", "momentum", "dampening")),
        *((name, _I) for name in ("nesterov", "centered", "maximize", "amsgrad")),
        ("begin", _I),
        ("end", _I),
        ("steps", _D),
    ]


class OuterStruct(ctypes.Structure):
    """``struct Outer`` of runtime.h."""

    _fields_ = [
        *((name, _I) for name in ("at", "rows", "columns", "group")),
        *((name, _P) for name in ("mask", "table", "full")),
    ]


class FitStruct(ctypes.Structure):
    """``struct Fit`` of runtime.h."""

    _fields_ = [
        *((name, _P) for name in ("par", "grd", "s1", "s2", "s3")),
        *((name, _I) for name in ("stretches", "kind", "groups", "particles")),
        ("at", _P),
        ("clip", _D),
        ("group", _P),
        ("cx", _P),
        ("streams", _I),
        ("first_stream", _I),
        ("stride", _P),
        ("bound", _P),
        ("bad", _P),
        ("done", _I),
        ("outers", _I),
        ("outer", _P),
    ]


def pointers(addresses: list[int]) -> Any:
    """Return a C array of addresses."""
    return (_P * max(1, len(addresses)))(*addresses)


def load(path: Path) -> Any:
    """Load a compiled step.

    Raises:
        Unsupported: The system's loader refuses it.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unsupported(f"the compiled step cannot be loaded ({error})") from error


@lru_cache(maxsize=1)
def blas() -> tuple[int, int]:
    """Return the addresses of ``sgemm`` and ``dgemm`` in PyTorch's own libraries, or zeros."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            library = ctypes.CDLL(str(folder / name))
            found = [ctypes.cast(getattr(library, f), _P).value for f in ("sgemm_", "dgemm_")]
        except (OSError, AttributeError):
            continue
        return found[0] or 0, found[1] or 0
    return 0, 0
