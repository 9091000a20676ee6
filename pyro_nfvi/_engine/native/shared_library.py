"""The C interface of a compiled step, and how one is tried out and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pyro_nfvi._engine.cache import Cache
from pyro_nfvi._engine.native.subprocesses import run, work_folder
from pyro_nfvi._engine.program import Unsupported

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


_CONTEXT = ("inputs", "out", "data", "work", "sgemm", "dgemm", "eager", "target")


class Context(ctypes.Structure):
    """``struct Ctx`` of base.h."""

    _fields_ = [(name, _P) for name in _CONTEXT]


class TargetStruct(ctypes.Structure):
    """``struct NfviTarget`` of density.h."""

    _fields_ = [
        ("call", _P),
        ("cx", _P),
        ("streams", _I),
        *((name, _P) for name in ("rows", "log_p", "score")),
    ]


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


class TableStruct(ctypes.Structure):
    """``struct Table`` of runtime.h."""

    _fields_ = [
        *((name, _P) for name in ("values", "mean", "square", "steps", "rows")),
        *((name, _I) for name in ("at", "count", "width", "group", "wide")),
    ]


class FitStruct(ctypes.Structure):
    """``struct Fit`` of runtime.h."""

    _fields_ = [
        *((name, _P) for name in ("par", "grd", "s1", "s2", "s3")),
        *((name, _I) for name in ("stretches", "groups", "particles")),
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
        ("step", _P),
        ("wide", _I),
        ("blocks", _I),
        ("sum", _P),
        ("tables", _I),
        ("table", _P),
    ]


def pointers(addresses: list[int]) -> Any:
    """Return a C array of addresses."""
    return (_P * max(1, len(addresses)))(*addresses)


#: Seconds after which loading an object in a process of its own is given up; on a busy
#: machine a process may take some to start.
_LOAD_TIMEOUT = 60.0
#: Loads an object, looks for its functions, may call one, and says so.
_TRIAL = """
import ctypes, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except Exception:
    pass
library = ctypes.CDLL(sys.argv[1])
for name in sys.argv[3:]:
    getattr(library, name)
if sys.argv[2]:
    getattr(library, sys.argv[2])((ctypes.c_double * 64)(), (ctypes.c_float * 64)())
sys.stdout.write("loaded")
sys.stdout.flush()
"""
#: Objects of this process by the sum of their bytes: none is loaded twice.
_LOADED: dict[str, Any] = {}


def try_out(data: bytes, symbols: tuple[str, ...], call: str = "") -> str:
    """Load an object in a process of its own, which may crash.

    Args:
        data: The object.
        symbols: Functions that it has to offer.
        call: One of them that is called with room for 64 doubles and 64 floats.

    Returns:
        What is wrong with it, such as ``"crashes when it is loaded (signal 11)"``; empty if
        nothing is.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return "cannot be tried out, since there is no Python to try it with"
    problem = ""
    for path, descriptors in _private_copies(data):
        with work_folder() as folder:
            command = [sys.executable, "-I", "-S", "-c", _TRIAL, path, call, *symbols]
            done = run(command, folder, _LOAD_TIMEOUT, descriptors)
        if not done.problem and not done.hung and not done.status and done.output == "loaded":
            return ""
        lines = [line for line in done.errors.splitlines() if line.strip()]
        if done.problem:
            problem = f"cannot be tried out ({done.problem})"
        elif done.hung:
            problem = f"did not load within {_LOAD_TIMEOUT:.0f} s"
        elif done.status < 0:
            problem = f"crashes when it is loaded (signal {-done.status})"
        elif lines:
            problem = f"cannot be loaded ({lines[-1].strip()[:300]})"
        else:
            problem = f"ends the process when it is loaded (status {done.status})"
    return problem or "can be put in no folder"


def load(data: bytes, symbols: tuple[str, ...]) -> Any:
    """Load the very bytes of a compiled step, from a copy that nobody else can have touched.

    Raises:
        Unsupported: The system's loader refuses it, or there is no room for the copy.
    """
    known = hashlib.sha256(data).hexdigest()
    problem = "no folder can be written to"
    if known not in _LOADED:
        for path, _ in _private_copies(data):
            try:
                _LOADED[known] = ctypes.CDLL(path)
                break
            except OSError as error:
                problem = str(error)
    if known not in _LOADED:
        raise Unsupported(f"the compiled step cannot be loaded ({problem})")
    library = _LOADED[known]
    for name in symbols:
        if not hasattr(library, name):
            raise Unsupported(f"the compiled step has no function {name}")
    return library


def _private_copies(data: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a path to the object, and descriptors that the path goes through, for each place.

    In the cache folder, where files may be run as they could before, and where temporary files lie.
    Until a copy that does is found, the next is made; each is gone when the next is asked for.
    """
    for place in (_in_cache, _in_temporary):
        try:
            with place(data) as found:
                yield found
        except OSError:
            continue


@contextmanager
def _in_cache(data: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = f"{hashlib.sha256(data).hexdigest()[:40]}.so"
    cache = Cache()
    with cache.draft(name, data) as (folder, draft):
        # Through the open folder, so that another one of its name does not come in between. The
        # loader knows objects by their paths, hence the name of its own.
        through = Path(f"/proc/self/fd/{draft}")
        if through.exists():
            yield f"{through}/{name}", (draft,)
        else:
            yield str(cache.folder / folder / name), ()


@contextmanager
def _in_temporary(data: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    with work_folder() as folder:
        path = folder / f"{hashlib.sha256(data).hexdigest()[:40]}.so"
        path.write_bytes(data)
        yield str(path), ()


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
