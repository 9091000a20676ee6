"""Files and folders that appear whole or not at all, and drafts that a kill left behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_nfvi._folder_lock import UNFINISHED, lock_folder
from pyro_nfvi.errors import FileError


@contextmanager
def whole_file(path: str | os.PathLike[str], kind: str = "file") -> Iterator[Path]:
    """Yield a path to write to; what is there at the end takes the place of ``path``.

    The draft lies in a folder of its own beside the target, which is locked while it is in use and
    goes at the end. An earlier file survives any failure, a kill included. Drafts of the same
    target that a kill left behind are removed. A target that is a link is followed.

    Args:
        path: The target.
        kind: What is written, for messages.

    Raises:
        FileError: The folder is missing or read-only, or the disk is full.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with whole_file(target) as draft:
        ...     _ = draft.write_text("all of it")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('all of it', 1)
    """
    named = Path(path)
    target = Path(os.path.realpath(named))
    try:
        remove_drafts(target)
        with _draft(target) as draft:
            yield draft
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
            with contextlib.suppress(FileNotFoundError):  # an earlier file's permissions are kept
                os.chmod(draft, target.stat().st_mode & 0o777)
            os.replace(draft, target)
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"The {kind} could not be written to {named}: {error.strerror or error}. {_cure(named)}"
        ) from error


@contextmanager
def whole_folder(path: str | os.PathLike[str], kind: str = "folder") -> Iterator[Path]:
    """Yield the path of a folder to make and fill; at the end it becomes ``path``.

    A folder cannot take the place of another in one step: where there is one already, nothing is
    written. Drafts of the same target that a kill left behind are removed.

    Args:
        path: The target.
        kind: What is written, for messages.

    Raises:
        FileError: There is something of this name, the folder around it is missing or read-only, or
            the disk is full.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "notes"
        >>> with whole_folder(target) as draft:
        ...     draft.mkdir()
        ...     _ = (draft / "first.txt").write_text("all of it")
        >>> [path.name for path in target.iterdir()]
        ['first.txt']
    """
    named = Path(path)
    target = Path(os.path.realpath(named))
    try:
        remove_drafts(target)
        if os.path.lexists(target):
            raise FileError(
                f"There is a {kind} {named} already, or something else of that name: nothing was "
                "written. Remove it, or give another name."
            )
        with _draft(target) as draft:
            yield draft
            for folder, _, names in os.walk(draft):
                for name in names:
                    with open(os.path.join(folder, name), "rb") as written:
                        os.fsync(written.fileno())
            os.rename(draft, target)
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"The {kind} could not be written to {named}: {error.strerror or error}. {_cure(named)}"
        ) from error


def remove_drafts(target: Path) -> None:
    """Remove drafts of a target that nobody works at any more, and nothing else."""
    begin = re.escape(f".{target.name}.")
    draft, old = re.compile(begin + r"[0-9a-f]{8}\.draft"), re.compile(begin + "[0-9a-z_]{8}")
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if draft.fullmatch(name):
                _remove_folder(target.parent / name, target.name)
            elif old.fullmatch(name):
                _remove_old(target.parent / name)


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Make a locked folder beside the target; yield a path in it that bears the target's name."""
    while True:
        folder = target.parent / f".{target.name}.{secrets.token_hex(4)}.draft"
        os.mkdir(folder, 0o700)
        lock = lock_folder(folder)
        if lock is None:  # somebody took it for one that was left behind
            continue
        try:
            yield folder / target.name
        finally:
            _remove(folder / target.name)
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            if lock >= 0:
                os.close(lock)
        return


def _remove_folder(folder: Path, name: str) -> None:
    """Remove a draft's folder if nobody works at it; a file of another name in it saves it."""
    with contextlib.suppress(OSError):
        found = os.stat(folder, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            return
        lock = lock_folder(folder)
        if lock is None or (lock < 0 and time.time() - found.st_mtime < UNFINISHED.lost_after):
            return
        try:
            if set(os.listdir(folder)) <= {name}:
                _remove(folder / name)
                os.rmdir(folder)
        finally:
            if lock >= 0:
                os.close(lock)


def _remove(draft: Path) -> None:
    """Remove a draft, a file or a folder, if it is there."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _remove_old(path: Path) -> None:
    """Remove a draft of version 0.1, a file: by its beginning, and once it is old."""
    with contextlib.suppress(OSError):
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < UNFINISHED.lost_after:
            return
        with open(path, "rb") as file:
            start = file.read(1024)
        if not start or (start.startswith(b"PK\x03\x04") and b"pyro_nfvi" in start):
            os.unlink(path)


def _cure(target: Path) -> str:
    """Say what to do about a file that could not be written."""
    if target.is_dir():
        return f"That is a folder: give a file in it, such as {target / 'fit.nfvi'}."
    if not target.parent.is_dir():
        return f"Make the folder {target.parent} first. Nothing is lost."
    kept = "The file of that name is as it was. " if target.exists() else ""
    return f"{kept}Nothing is lost: save it to another folder."
