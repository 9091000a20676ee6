"""Commands run in processes of their own, whatever they print and whether or not they end."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._folder_lock import UNFINISHED, lock_folder

#: Bytes of a command's output that are read: a flood of messages stays in its file.
_MAX_OUTPUT = 65536
_WORK = re.compile(r"nfvi-work-[0-9a-f]{16}")
_MARK, _MARK_TEXT = ".pyro_nfvi", b"Files of a compiler, made by pyro_nfvi; not needed any more.\n"


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        status: Its exit status; negative, the signal that ended it.
        output: The beginning of what it printed.
        errors: The beginning of what it printed as errors.
        hung: Whether it was ended because it took too long.
        problem: Why it could not be started; empty if it was.
    """

    status: int = 0
    output: str = ""
    errors: str = ""
    hung: bool = False
    problem: str = ""


class Cancelled(Unsupported):
    """Nobody needs the result of a command any more; it is no fault of the command's."""


class Cancellation:
    """Ends the commands of one thread from another."""

    def __init__(self) -> None:
        self._lock, self._done = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None

    def cancel(self) -> None:
        """End the command that runs, and begin no other."""
        with self._lock:
            self._done = True
            if self._process is not None:
                _end(self._process)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Take note of a command that has begun."""
        with self._lock:
            self._process = process
            if self._done:
                _end(process)

    def check(self) -> None:
        """Raise :class:`Cancelled` once that is so."""
        if self._done:
            raise Cancelled("it is not needed any more")


#: What ends the commands of this thread; None where nothing does.
CANCELLATION: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a locked folder that nobody else can enter, and remove it at the end.

    Folders that processes which died left beside it are removed first: those of this form and
    user that nobody has locked. Not removed at the end of a process that was forked meanwhile, as
    that of ``tempfile.TemporaryDirectory`` is.
    """
    place = Path(tempfile.gettempdir())
    _remove_lost(place)
    lock = None
    while lock is None:  # somebody took it for one that was left behind
        folder = place / f"nfvi-work-{secrets.token_hex(8)}"
        os.mkdir(folder, 0o700)
        lock = lock_folder(folder)
    try:
        (folder / _MARK).write_bytes(_MARK_TEXT)
        yield folder
    finally:
        _remove(folder)
        if lock >= 0:
            os.close(lock)


def _remove_lost(place: Path) -> None:
    """Remove the work folders at which nobody works any more."""
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            if _WORK.fullmatch(name):
                _remove_if_lost(place / name)


def _remove_if_lost(folder: Path) -> None:
    """Remove a folder made by :func:`work_folder`, unless it is in use."""
    with contextlib.suppress(OSError):
        found = os.stat(folder, follow_symlinks=False)
        own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if not (stat.S_ISDIR(found.st_mode) and own):
            return
        lock = lock_folder(folder)
        if lock is None:
            return
        try:
            if lock >= 0 or time.time() - found.st_mtime > UNFINISHED.lost_after:
                if not os.listdir(folder):  # killed before it was marked
                    os.rmdir(folder)
                elif (folder / _MARK).read_bytes() == _MARK_TEXT:
                    _remove(folder)
        finally:
            if lock >= 0:
                os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a work folder, its mark last, so that a kill on the way leaves one that is known."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _MARK:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        if os.listdir(folder) == [_MARK]:  # a compiler whose parent was killed may still write
            os.unlink(folder / _MARK)
        os.rmdir(folder)


def run(
    command: Sequence[str], folder: Path, timeout: float, pass_fds: Sequence[int] = ()
) -> Outcome:
    """Run a command in a folder, and end it, with all that it started, after ``timeout`` seconds.

    Words that are not UTF-8 are read with replacements; a flood of them stays in a file.

    Raises:
        OSError: The folder cannot be written to.
        Cancelled: The thread's work was cancelled.
    """
    cancellation = CANCELLATION.get()
    if cancellation is not None:
        cancellation.check()
    with open(folder / "output", "w+b") as output, open(folder / "errors", "w+b") as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except (OSError, ValueError) as error:
            return Outcome(problem=str(error))
        hung = False
        try:
            if cancellation is not None:
                cancellation.watch(process)
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            _end(process)
        if cancellation is not None:
            cancellation.check()
        return Outcome(process.returncode, _beginning(output), _beginning(errors), hung)


def _beginning(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs: compilers are drivers, whose work is done by children."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
