"""Sources to compiled objects, through the cache."""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from pathlib import Path

from pyro_nfvi.engine.cache import Cache
from pyro_nfvi.engine.native.compiler import find_compiler
from pyro_nfvi.engine.program import Unsupported

__all__ = ["compile_text"]

#: Seconds that a compiler takes at least, and characters of source that it compiles in each second.
_FIRST, _SPEED = 1.0, 20_000.0


def compile_text(text: str, patience: float = math.inf) -> tuple[Path, bool]:
    """Compile a source or find it compiled; return the object and whether it was found.

    Args:
        text: The source.
        patience: Seconds that a compile may take; one that is expected to take longer is not
            begun.

    Raises:
        Unsupported: No compiler, it fails, nothing can be written, or it takes too long.
    """
    compiler = find_compiler()
    key = Cache.key(text, compiler.identity)
    try:
        cache = Cache()
    except Unsupported:
        # No folder to keep it in: build it for this process alone.
        try:
            folder = tempfile.mkdtemp(prefix="pyro_nfvi-")
        except OSError as error:
            raise Unsupported(f"no folder can be written to ({error})") from error
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        compiler.build(text, Path(folder, "step.so"), _enough(text, patience))
        return Path(folder, "step.so"), False
    found = cache.find(key)
    if found is not None:
        return found, True
    wait = _enough(text, patience)
    return cache.get(key, lambda target: compiler.build(text, target, wait)), False


def _enough(text: str, patience: float) -> float:
    """Return the patience, if a compile can be expected to end within it.

    Raises:
        Unsupported: It cannot.
    """
    expected = _FIRST + len(text) / _SPEED
    if expected > patience:
        raise Unsupported(
            f"compiling takes about {expected:.0f} s, and the time left for it is {patience:.1f} s"
        )
    return patience
