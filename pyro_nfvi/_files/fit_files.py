"""Files that are written whole or not at all, and read without running code."""

from __future__ import annotations

import json
import os
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyro_nfvi._compat import writes_checksums
from pyro_nfvi._files.archives import LIMITS, Malformed, check_archive, check_contents, open_plain
from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import FileError


def write_file(path: str | os.PathLike[str], kind: str, spec: Any, tensors: Any) -> None:
    """Write ``spec`` (what JSON can hold) and ``tensors`` (nested dicts) in one go.

    The bytes go into a draft beside the target, which then takes its place, so that an earlier
    file survives any failure.

    Raises:
        FileError: The folder is missing or read-only, or the disk is full.
    """
    versions = {"pyro_nfvi": __version__, "torch": torch.__version__, "pyro": _pyro_version()}
    sums = writes_checksums()
    header = {
        "layout": LIMITS.layout,
        "kind": kind,
        "versions": versions,
        "sums": sums,
        "spec": spec,
    }
    with whole_file(path, kind) as draft, open(draft, "xb") as file:
        try:
            torch.save({"pyro_nfvi": json.dumps(header), "tensors": tensors}, file)
        except RuntimeError as error:  # torch's own words for a disk that is full
            raise OSError(f"{error}".partition("\n")[0]) from error


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
        with open_plain(target) as file:
            return _read(file, target, kind, map_location)
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"There is no file {target}. {_beside(target)}") from error
    except IsADirectoryError as error:
        raise FileError(f"{target} is a folder. {_beside(target / 'fit')}") from error
    except OSError as error:
        raise FileError(
            f"{target} cannot be read: {error.strerror or error}. Check its permissions, or "
            "copy it to a place where it can be read."
        ) from error
    except MemoryError as error:
        raise FileError(
            f"There is not enough memory for {target}. Close what else is open, or read it on a "
            "larger machine."
        ) from error


def _read(file: BinaryIO, target: Path, kind: str, map_location: Any) -> tuple[Any, Any]:
    """Read an open file: one descriptor, so that what was examined is what is read."""
    try:
        check_archive(file)
        file.seek(0)
        held = torch.load(file, map_location=map_location, weights_only=True)
        if isinstance(held, dict) and isinstance(held.get("pyro_nfvi"), str):
            check_contents(held, os.fstat(file.fileno()).st_size)
    except MemoryError:
        raise
    except Malformed as error:
        raise FileError(
            f"{target} is no {kind} of pyro_nfvi, or it is damaged: {error}. Load files that "
            "fit.save(path) wrote."
        ) from error
    except Exception as error:  # torch's reader fails on foreign bytes in every way there is
        raise FileError(_diagnosis(file, target, kind)) from error
    if not isinstance(held, dict) or not isinstance(held.get("pyro_nfvi"), str):
        raise FileError(
            f"{target} is a torch file, but no {kind} of pyro_nfvi. Load it with torch.load."
        )
    try:
        header = json.loads(held["pyro_nfvi"])
        found = header["kind"], header["spec"], held["tensors"]
        too_new = header["layout"] > LIMITS.layout
        sums = header.get("sums", True)
        writer = str(header.get("versions", {}).get("pyro_nfvi", "another version"))[:40]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(_diagnosis(file, target, kind)) from error
    if too_new:
        raise FileError(
            f"{target} was written by pyro_nfvi {writer}, which is newer "
            f"than this one ({__version__}). Upgrade pyro_nfvi to read it."
        )
    if found[0] != kind:
        raise FileError(
            f"{target} holds a {str(found[0])[:40]} of pyro_nfvi, not a {kind}: a fit is read by "
            "nfvi.load(path), a checkpoint by NFVI(..., checkpoint=path, resume=True)."
        )
    if sums and not _unharmed(file):
        raise FileError(f"{target} is damaged: its checksums are wrong. Copy or save it again.")
    if not isinstance(found[1], dict) or not isinstance(found[2], dict):
        raise FileError(f"{target} is damaged: its description is none. Save it again.")
    return found[1], found[2]


def _pyro_version() -> str:
    """Return Pyro's version, for the header, without importing it."""
    try:
        return metadata.version("pyro-ppl")
    except metadata.PackageNotFoundError:  # a checkout on the path
        return "unknown"


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
    """Tell whether a file looks like one of ours: a zip archive with our header near its start."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start.startswith(b"PK\x03\x04") and b"pyro_nfvi" in start


def _unharmed(file: BinaryIO) -> bool:
    """Tell whether the bytes are those that were written; torch itself does not look."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile, like torch, fails in many ways
        return False


def _diagnosis(file: BinaryIO, target: Path, kind: str) -> str:
    file.seek(0)
    start = file.read(4)
    if start == b"PK\x03\x04" and not _unharmed(file):
        return f"{target} is truncated or damaged: copy or save the {kind} again."
    return (
        f"{target} is no {kind} of pyro_nfvi, or it is damaged. Load files that fit.save(path) "
        "wrote."
    )
