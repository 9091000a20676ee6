"""Files that are written whole or not at all, and read without running code."""

from __future__ import annotations

import errno
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_nfvi._compat import writes_checksums
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import FileError

__all__ = ["read_file", "write_file"]

#: Version of the layout; a reader refuses what is newer.
_LAYOUT = 1


def write_file(path: str | os.PathLike[str], kind: str, spec: Any, tensors: Any) -> None:
    """Write ``spec`` (what JSON can hold) and ``tensors`` (nested dicts) in one go.

    The bytes go into a new file beside the target, which then takes its place, so that an
    earlier file survives any failure.

    Raises:
        FileError: The folder is missing or read-only, or the disk is full.
    """
    target = Path(path)
    buffer = io.BytesIO()
    versions = {"pyro_nfvi": __version__, "torch": torch.__version__, "pyro": pyro.__version__}
    sums = writes_checksums()
    header = {"layout": _LAYOUT, "kind": kind, "versions": versions, "sums": sums, "spec": spec}
    torch.save({"pyro_nfvi": json.dumps(header), "tensors": tensors}, buffer)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private by default; an earlier file keeps its permissions.
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(
            f"The {kind} could not be written to {target}: {error.strerror or error}. "
            f"{_cure(target)}"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def read_file(
    path: str | os.PathLike[str], kind: str, map_location: Any = "cpu"
) -> tuple[Any, Any]:
    """Return ``(spec, tensors)`` of a file that :func:`write_file` wrote.

    Only tensors and plain containers are read (``weights_only``); no code in the file runs.

    Raises:
        FileError: No such file, truncated, written by something else, or by a newer version.
    """
    target = Path(path)
    try:
        held = torch.load(target, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise FileError(f"There is no file {target}. {_beside(target)}") from error
    except IsADirectoryError as error:
        raise FileError(f"{target} is a folder. {_beside(target / 'fit')}") from error
    except OSError as error:
        # torch seeks to a place before the start of some truncated files.
        if error.errno == errno.EINVAL and target.is_file():
            raise FileError(_diagnosis(target, kind)) from error
        raise FileError(
            f"{target} cannot be read: {error.strerror or error}. Check its permissions, or "
            "copy it to a place where it can be read."
        ) from error
    except Exception as error:  # torch's reader fails on foreign bytes in every way there is
        raise FileError(_diagnosis(target, kind)) from error
    if not isinstance(held, dict) or not isinstance(held.get("pyro_nfvi"), str):
        raise FileError(
            f"{target} is a torch file, but no {kind} of pyro_nfvi. Load it with torch.load."
        )
    try:
        header = json.loads(held["pyro_nfvi"])
        found = header["kind"], header["spec"], held["tensors"]
        too_new = header["layout"] > _LAYOUT
        sums = header.get("sums", True)
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(_diagnosis(target, kind)) from error
    if too_new:
        raise FileError(
            f"{target} was written by pyro_nfvi {header['versions']['pyro_nfvi']}, which is newer "
            f"than this one ({__version__}). Upgrade pyro_nfvi to read it."
        )
    if found[0] != kind:
        raise FileError(
            f"{target} holds a {found[0]} of pyro_nfvi, not a {kind}: a fit is read by "
            "nfvi.load(path), a checkpoint by NFVI(..., checkpoint=path, resume=True)."
        )
    if sums and not _unharmed(target):
        raise FileError(f"{target} is damaged: its checksums are wrong. Copy or save it again.")
    return found[1], found[2]


def _cure(target: Path) -> str:
    """Say what to do about a file that could not be written."""
    if target.is_dir():
        return f"That is a folder: give a file in it, such as {target / 'fit.nfvi'}."
    if not target.parent.is_dir():
        return f"Make the folder {target.parent} first. Nothing is lost."
    kept = "The file of that name is as it was. " if target.exists() else ""
    return f"{kept}Nothing is lost: save it to another folder."


def _beside(target: Path) -> str:
    """Say what there is in the folder in which a file was looked for."""
    folder = target.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either: check the path (from {Path.cwd()})."
    found = sorted(path.name for path in folder.iterdir() if _is_ours(path))
    if not found:
        return f"No file in {folder.resolve()} was written by fit.save(path): check the path."
    names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return f"Files of this kind in {folder.resolve()}: {names}."


def _is_ours(path: Path) -> bool:
    """Whether a file looks like one of ours: a zip archive with our header near its start."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start.startswith(b"PK\x03\x04") and b"pyro_nfvi" in start


def _unharmed(target: Path) -> bool:
    """Whether the bytes are those that were written; torch itself does not look."""
    try:
        with zipfile.ZipFile(target) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile, like torch, fails in many ways
        return False


def _diagnosis(target: Path, kind: str) -> str:
    with target.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and not _unharmed(target):
        return f"{target} is truncated or damaged: copy or save the {kind} again."
    return (
        f"{target} is no {kind} of pyro_nfvi, or it is damaged. Load files that fit.save(path) "
        "wrote."
    )
