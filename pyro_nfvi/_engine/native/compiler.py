"""The system's C++ compiler: find it, learn what it can, run it, remember where it failed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from pyro_nfvi._engine.cache import LIMITS, Cache
from pyro_nfvi._engine.native.shared_library import try_out
from pyro_nfvi._engine.native.subprocesses import Outcome, run, work_folder
from pyro_nfvi._engine.program import Unsupported

#: No -ffast-math: NaN and infinity are seen. Products and sums may be contracted.
_FLAGS = (
    "-O2", "-ftree-vectorize", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden", "-w",
)  # fmt: skip
#: Seconds after which a compile is given up: more than twice what the largest step takes (12,000
#: loops of 6 ms).
_COMPILE_TIMEOUT = 200.0
#: Seconds after which a compiler has to have said its version, or compiled a function of one line.
_PROBE_TIMEOUT = 30.0
#: Failures in a row after which this process does not use a compiler again: one alone may be due to
#: its source.
_MAX_FAILURES = 2
_TRIFLE = 'extern "C" __attribute__((visibility("default"))) void probe(double*, float*) {}\n'
_PROBE = """
#include <cmath>
extern "C" {
__attribute__((simd("notinbranch"))) double tanh(double) noexcept;
__attribute__((simd("notinbranch"))) float erff(float) noexcept;
}
extern "C" __attribute__((visibility("default"))) void probe(double* x, float* y) {
#pragma omp simd
  for (int i = 0; i < 64; i++) { x[i] = tanh(x[i]); y[i] = erff(y[i]); }
}
"""


class CompilerFault(Unsupported):
    """The compiler itself failed, hung, or made what cannot be loaded."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that works on this machine.

    Attributes:
        command: Its command.
        version: What it says of itself; part of the key of cached objects.
        flags: Options for it, those for this processor included.
        libraries: Libraries to link.
    """

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Everything about it on which an object depends."""
        return "\n".join((*self.command, self.version, *self.flags, *self.libraries))

    def build(
        self, source: str, symbols: tuple[str, ...], timeout: float = _COMPILE_TIMEOUT
    ) -> bytes:
        """Compile a source into a shared object, and try it out in a process of its own.

        A source for which it failed is not given to it again by this process; after two failures
        in a row none is, and after a compile that hung none without a longer timeout.

        Args:
            source: C++.
            symbols: Functions that the object has to offer.
            timeout: Seconds that it may take.

        Raises:
            CompilerFault: It failed, was killed, took too long, or made what cannot be loaded.
            Unsupported: The disk is full.
        """
        timeout = min(timeout, _COMPILE_TIMEOUT)
        build = partial(self._build, source, symbols, timeout)
        return _MEMORY.ask(self.identity, source, timeout, build)

    def _build(self, source: str, symbols: tuple[str, ...], timeout: float) -> bytes:
        data = _compile([*self.command, *self.flags], source, self.libraries, timeout)
        if problem := try_out(data, symbols):
            raise CompilerFault(f"what the compiler {self.command[0]} made {problem}")
        return data


def _compile(
    command: list[str], source: str, libraries: tuple[str, ...], timeout: float = _COMPILE_TIMEOUT
) -> bytes:
    """Run a compiler on a source and return the object."""
    try:
        with work_folder() as folder:
            code, made = folder / "step.cpp", folder / "step.so"
            code.write_text(source, encoding="utf-8")
            line = [*command, str(code), "-o", str(made), *libraries]
            _check(run(line, folder, timeout), command[0], timeout)
            return _made(made, command[0])
    except OSError as error:
        raise Unsupported(f"the compiler's files cannot be written ({error})") from error


def _check(done: Outcome, name: str, timeout: float) -> None:
    """Raise unless a compiler has ended well."""
    if done.problem:
        raise CompilerFault(f"the C++ compiler {name} cannot be run ({done.problem})")
    if done.hung:
        raise _Hung(f"the compiler took more than {timeout:.0f} s")
    if done.status < 0:
        raise CompilerFault(f"the compiler was killed (signal {-done.status})")
    if done.status:
        lines = [line for line in done.errors.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        told = told.strip()[:300] or f"{name} said nothing"
        raise CompilerFault(f"the compiler failed (status {done.status}): {told}")


def _made(path: Path, name: str) -> bytes:
    """Read what a compiler wrote."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        text = f"the compiler {name} ended without an error and wrote nothing"
        raise CompilerFault(text) from None
    if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= LIMITS.object_bytes:
        raise CompilerFault(f"the compiler {name} wrote no object")
    return path.read_bytes()


class _Hung(CompilerFault):
    """It did not end; another source will hardly fare better."""


class _Memory:
    """Failures of compilers in this process, so that none is waited for again and again."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.in_a_row: dict[str, int] = {}
        self.given_up: dict[str, str] = {}
        self.waited: dict[str, float] = {}

    def ask(self, identity: str, source: str, timeout: float, build: Callable[[], bytes]) -> bytes:
        """Build, unless it is known to fail."""
        key = Cache.key(identity, source)
        known = self.given_up.get(identity) or self.sources.get(key)
        if known:
            raise CompilerFault(known)
        if timeout <= self.waited.get(identity, 0.0):
            raise CompilerFault(f"the compiler took more than {self.waited[identity]:.0f} s before")
        try:
            data = build()
        except _Hung:
            self.waited[identity] = timeout
            raise
        except CompilerFault as error:
            self.sources[key] = str(error)
            count = self.in_a_row[identity] = self.in_a_row.get(identity, 0) + 1
            if count >= _MAX_FAILURES:
                self.given_up[identity] = f"{error}; it is not asked again"
            raise
        self.in_a_row.pop(identity, None)
        return data


_MEMORY = _Memory()


_LOCK = threading.Lock()


def _unlock() -> None:
    """Give a child process a lock of its own: a thread that it does not have may hold this one."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def find_compiler() -> Compiler:
    """Return the compiler named by the variable CXX, or else ``c++``, ``g++`` or ``clang++``.

    The first of them that can compile, and whose object can be loaded.

    Raises:
        Unsupported: There is none, or it cannot compile a trifle.
    """
    chosen = os.environ.get("CXX", "")
    names = [chosen.split()] if chosen.split() else [["c++"], ["g++"], ["clang++"]]
    found = [(shutil.which(name[0]), name[1:]) for name in names]
    present = [(where, *rest) for where, rest in found if where]
    if not present:
        asked = f"CXX={chosen!r} is not on the path" if chosen else "no c++, g++ or clang++"
        raise Unsupported(f"there is no C++ compiler ({asked})")
    problems = []
    with _LOCK:  # two fits in two threads try it once
        for command in present:
            try:
                mark = Path(command[0]).stat()
            except OSError as error:
                problems.append(f"the C++ compiler {command[0]} cannot be run ({error})")
                continue
            known = _find(command, mark.st_mtime_ns, mark.st_size)
            if isinstance(known, Compiler):
                return known
            problems.append(known)
    raise Unsupported(problems[0])


@lru_cache(maxsize=8)
def _find(command: tuple[str, ...], changed: int, size: int) -> Compiler | str:
    """Return a compiler, or why it is none: once for each, until its file changes."""
    try:
        with work_folder() as folder:
            asked = run([*command, "--version"], folder, _PROBE_TIMEOUT)
        if asked.problem or asked.hung:
            why = asked.problem or f"it took more than {_PROBE_TIMEOUT:.0f} s to say its version"
            return f"the C++ compiler {command[0]} cannot be run ({why})"
        version = asked.output.partition("\n")[0]
        return _remembered(command, version, Cache.key(*command, version, f"{changed} {size}"))
    except CompilerFault as error:
        return str(error)


def _remembered(command: tuple[str, ...], version: str, key: str) -> Compiler:
    """Try the compiler out, unless it is known from an earlier time."""
    cache, key = Cache(), Cache.key(key, _processor(), "probe")
    held = cache.find(key)
    told = _probe(command) if held is None else held.decode("ascii", "replace")
    if held is None:
        cache.put(key, told.encode())
    native, _, vectors = told.partition(" ")
    flags = [*_FLAGS, f"-DNFVI_PROCESSOR=0x{_processor()}"]
    flags += [native] if native != "-" else []
    flags += ["-DNFVI_LIBMVEC"] if vectors else []
    return Compiler(command, version, tuple(flags), ("-lmvec", "-lm") if vectors else ("-lm",))


def _probe(command: tuple[str, ...]) -> str:
    """Return the option for this processor (or a dash), and whether there are vector functions.

    Raises:
        CompilerFault: Not even a trifle compiles, or what comes of it cannot be loaded.
    """
    _attempt(command, _TRIFLE, (), ("-lm",))  # one that fails here is not asked six times more
    for source, vectors in ((_PROBE, " vectors"), (_TRIFLE, "")):
        libraries = ("-lmvec", "-lm") if vectors else ("-lm",)
        for native in ("-march=native", "-mcpu=native", "-"):
            with contextlib.suppress(CompilerFault):
                _attempt(command, source, () if native == "-" else (native,), libraries)
                return native + vectors
    return "-"


def _attempt(
    command: tuple[str, ...], source: str, extra: tuple[str, ...], libraries: tuple[str, ...]
) -> None:
    """Compile, load and call a small function."""
    data = _compile([*command, *_FLAGS, *extra], source, libraries, _PROBE_TIMEOUT)
    if problem := try_out(data, ("probe",), call="probe"):
        raise CompilerFault(f"what the compiler {command[0]} made {problem}")


def _processor() -> str:
    """Return a fingerprint of the processor: objects are kept, and processors may change."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        words = ("flags", "Features", "model name", "CPU part", "CPU implementer")
        told = sorted({line for line in lines if line.startswith(words)})
    except OSError:
        told = []
    told += [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
