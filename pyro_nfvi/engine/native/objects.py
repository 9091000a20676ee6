"""Sources to compiled objects, through the cache."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from pyro_nfvi.engine.cache import Cache
from pyro_nfvi.engine.native.compiler import find_compiler
from pyro_nfvi.engine.program import Unsupported

__all__ = ["compile_text"]


def compile_text(text: str) -> tuple[Path, bool]:
    """Compile a source or find it compiled; return the object and whether it was found.

    Raises:
        Unsupported: No compiler, it fails, or nothing can be written.
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
        compiler.build(text, Path(folder, "step.so"))
        return Path(folder, "step.so"), False
    found = cache.find(key)
    if found is not None:
        return found, True
    return cache.get(key, lambda target: compiler.build(text, target)), False
