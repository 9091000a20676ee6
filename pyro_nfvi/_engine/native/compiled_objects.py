"""Sources to compiled objects, through the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_nfvi._engine.cache import Cache
from pyro_nfvi._engine.native.background import begin, finish
from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._engine.program import Unsupported


@dataclass(frozen=True)
class BuildInfo:
    """Record of how a source was built.

    Attributes:
        generate: Seconds to write the source.
        compile: Seconds to compile it, or to find it compiled.
        cached: Whether it was found.
        loops: Loops and calls of the source.
        eager: Names of the operations that PyTorch computes.
    """

    generate: float
    compile: float
    cached: bool
    loops: int
    eager: tuple[str, ...] = ()


@dataclass(frozen=True)
class _CompileTime:
    """Line by which the time of a compile is expected, from the length of its source.

    Measured by ``benchmarks/compile_time.py`` with g++ on one core: ten sources of 62,000 to
    148,000 characters took 0.84 to 1.25 times as long. On a slower machine a compile is ended when
    its time is over.

    Attributes:
        offset: Seconds at length 0; negative, since a part of every source is declarations.
        speed: Characters in each second beyond.
        least: Seconds of the shortest.
    """

    offset: float = -0.80
    speed: float = 49_900.0
    least: float = 0.3

    def expect(self, text: str) -> float:
        """Return the seconds that a source is expected to take."""
        return max(self.least, self.offset + len(text) / self.speed)


_COMPILE_TIME = _CompileTime()


def compile_text(
    text: str, symbols: tuple[str, ...], timeout: float = math.inf
) -> tuple[bytes, bool]:
    """Compile a source or find it compiled; return the object and whether it was found.

    A new object is tried out in a process of its own, and kept if that went well. Where it cannot
    be kept (a full disk, a folder that is not to be trusted) it serves this process alone.

    Args:
        text: C++.
        symbols: Functions that it has to offer.
        timeout: Seconds that a compile may take; one that is expected to take longer is not
            begun.

    Raises:
        Unsupported: No compiler, it fails, nothing can be written, or it takes too long.
    """
    compiler, cache = find_compiler(), Cache()
    key = Cache.key(text, compiler.identity)
    begun = finish(key, timeout)
    if begun is not None:
        return begun, False
    found = cache.find(key)
    if found is not None:
        return found, True
    expected = _COMPILE_TIME.expect(text)
    if expected > timeout:
        raise Unsupported(
            f"compiling takes about {expected:.0f} s, and the time left for it is {timeout:.1f} s"
        )
    data = compiler.build(text, symbols, timeout)
    cache.put(key, data)
    return data, False


def begin_compile(text: str, symbols: tuple[str, ...], mark: str) -> None:
    """Compile a source in the background unless it is compiled; :func:`compile_text` waits for it.

    Args:
        text: C++.
        symbols: Functions that it has to offer.
        mark: Key of a note that it is compiled, for :func:`is_marked`.
    """
    compiler, cache = find_compiler(), Cache()
    key = Cache.key(text, compiler.identity)

    def build() -> bytes:
        data = cache.find(key)
        if data is None:
            data = compiler.build(text, symbols)
            cache.put(key, data)
        cache.put(mark, b"compiled")
        return data

    begin(key, build)


def is_marked(mark: str) -> bool:
    """Tell whether a source was compiled in the background before."""
    return Cache().find(mark) is not None
