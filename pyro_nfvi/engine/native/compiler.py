"""The system's C++ compiler: find it, learn what it can, run it."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pyro_nfvi.engine.cache import Cache
from pyro_nfvi.engine.program import Unsupported

__all__ = ["Compiler", "find_compiler"]

#: No -ffast-math: NaN and infinity are seen. Products and sums may be contracted.
_FLAGS = (
    "-O2", "-ftree-vectorize", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden", "-w",
)  # fmt: skip
#: Seconds after which a compile is given up.
_PATIENCE = 300.0
_TRIFLE = 'extern "C" int probe() { return 0; }\n'
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

    def build(self, source: str, target: Path, patience: float = _PATIENCE) -> None:
        """Compile a source into a shared object at ``target``, within so many seconds.

        Raises:
            Unsupported: It failed, was killed, took too long, or the disk is full.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
                code, made = Path(folder, "step.cpp"), Path(folder, "step.so")
                code.write_text(source, encoding="utf-8")
                line = [*self.command, *self.flags, str(code), "-o", str(made)]
                _run([*line, *self.libraries], folder, min(patience, _PATIENCE))
                shutil.copyfile(made, target)
        except OSError as error:
            raise Unsupported(f"the compiler's files cannot be written ({error})") from error


def _run(command: list[str], folder: str, patience: float = _PATIENCE) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": folder},
        )
    except subprocess.TimeoutExpired as error:
        raise Unsupported(f"the compiler took more than {patience:.0f} s") from error
    if done.returncode < 0:
        raise Unsupported(f"the compiler was killed (signal {-done.returncode})")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
        told = told.strip()[:300] or f"{command[0]} said nothing"
        raise Unsupported(f"the compiler failed (status {done.returncode}): {told}")
    if not Path(folder, command[command.index("-o") + 1]).exists():
        raise Unsupported(f"the compiler {command[0]} ended without an error and wrote nothing")


_LOCK = threading.Lock()


def find_compiler() -> Compiler:
    """Return the compiler named by the variable CXX, or else ``c++``, ``g++`` or ``clang++``.

    Raises:
        Unsupported: There is none, or it cannot compile a trifle.
    """
    with _LOCK:  # two fits in two threads try it once
        return _find(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@lru_cache(maxsize=8)
def _find(chosen: str, path: str) -> Compiler:
    del path  # part of the key: another path may hold another compiler
    names = [chosen.split()] if chosen.split() else [["c++"], ["g++"], ["clang++"]]
    found = [(shutil.which(name[0]), name[1:]) for name in names]
    present = [(where, rest) for where, rest in found if where]
    if not present:
        asked = f"CXX={chosen!r} is not on the path" if chosen else "no c++, g++ or clang++"
        raise Unsupported(f"there is no C++ compiler ({asked})")
    where, rest = present[0]
    command = (where, *rest)
    try:
        version = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=20, check=False
        ).stdout.split("\n")[0]
        mark = Path(where).stat()
        key = Cache.key(*command, version, f"{mark.st_mtime_ns} {mark.st_size}", _processor())
        return _remembered(command, version, key)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"the C++ compiler {where} cannot be run ({error})") from error


def _remembered(command: tuple[str, ...], version: str, key: str) -> Compiler:
    """Try the compiler out, unless it is known from an earlier time."""
    tried: list[str] = []

    def attempt(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
            tried.append(_probe(command, folder))
        target.write_text(tried[0], "utf-8")

    try:
        told = Cache().get(key, attempt).read_text("utf-8")
    except Unsupported:
        if not tried:  # it is the compiler that failed, or the folder: find out without the latter
            with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
                tried.append(_probe(command, folder))
        told = tried[0]
    native, _, vectors = told.partition(" ")
    flags = [*_FLAGS, f"-DNFVI_PROCESSOR=0x{_processor()}"]
    flags += [native] if native != "-" else []
    flags += ["-DNFVI_LIBMVEC"] if vectors else []
    return Compiler(command, version, tuple(flags), ("-lmvec", "-lm") if vectors else ("-lm",))


def _probe(command: tuple[str, ...], folder: str) -> str:
    """Return the option for this processor (or a dash), and whether there are vector functions.

    Raises:
        Unsupported: Not even a trifle compiles.
    """
    code, made = Path(folder, "probe.cpp"), str(Path(folder, "probe.so"))
    reason: Unsupported | None = None
    for source, vectors in ((_PROBE, " vectors"), (_TRIFLE, "")):
        code.write_text(source, encoding="utf-8")
        libraries = ("-lmvec", "-lm") if vectors else ("-lm",)
        for native in ("-march=native", "-mcpu=native", "-"):
            extra = () if native == "-" else (native,)
            try:
                _run([*command, *_FLAGS, *extra, str(code), "-o", made, *libraries], folder, 60)
                return native + vectors
            except Unsupported as error:
                reason = error
    raise reason or Unsupported("the compiler fails")


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
