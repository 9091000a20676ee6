"""Sources to compiled objects, through the cache."""

from __future__ import annotations

import math

from pyro_nfvi._engine.cache import Cache
from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._engine.program import Unsupported

#: Seconds that a compiler takes at least, and characters of source that it compiles in each second.
_FIRST, _SPEED = 1.0, 20_000.0


def compile_text(
    text: str, symbols: tuple[str, ...], patience: float = math.inf
) -> tuple[bytes, bool]:
    """Compile a source or find it compiled; return the object and whether it was found.

    A new object is tried out in a process of its own, and kept if that went well. Where it cannot
    be kept (a full disk, a folder that is not to be trusted) it serves this process alone.

    Args:
        text: C++.
        symbols: Functions that it has to offer.
        patience: Seconds that a compile may take; one that is expected to take longer is not
            begun.

    Raises:
        Unsupported: No compiler, it fails, nothing can be written, or it takes too long.
    """
    compiler, cache = find_compiler(), Cache()
    key = Cache.key(text, compiler.identity)
    found = cache.find(key)
    if found is not None:
        return found, True
    expected = _FIRST + len(text) / _SPEED
    if expected > patience:
        raise Unsupported(
            f"compiling takes about {expected:.0f} s, and the time left for it is {patience:.1f} s"
        )
    data = compiler.build(text, symbols, patience)
    cache.put(key, data)
    return data, False
