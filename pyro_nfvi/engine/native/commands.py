"""Commands run in processes of their own, whatever they print and whether or not they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Outcome", "run", "work_folder"]

#: Bytes of a command's words that are looked at.
_WORDS = 65536


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

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


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder that nobody else can enter, and remove it at the end.

    Not at the end of a process that was forked meanwhile, as ``tempfile.TemporaryDirectory`` does.
    """
    folder = Path(tempfile.mkdtemp(prefix="nfvi-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(
    command: Sequence[str], folder: Path, patience: float, pass_fds: Sequence[int] = ()
) -> Outcome:
    """Run a command in a folder, and end it, with all that it started, after ``patience`` seconds.

    Words that are not UTF-8 are read with replacements; a flood of them stays in a file.

    Raises:
        OSError: The folder cannot be written to.
    """
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
            process.wait(patience)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            _end(process)
        return Outcome(process.returncode, _beginning(output), _beginning(errors), hung)


def _beginning(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(_WORDS).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs: compilers are drivers, whose work is done by children."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
