"""Files that are written whole or not at all, and read without running code."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyro
import torch

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
    header = {"layout": _LAYOUT, "kind": kind, "versions": versions, "spec": spec}
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
            f"{'The file of that name is as it was. ' if target.exists() else ''}"
            "Nothing is lost: save it to another folder."
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
        raise FileError(f"There is no file {target}.") from error
    except OSError as error:
        # torch seeks to a place before the start of some truncated files.
        if error.errno == errno.EINVAL and target.is_file():
            raise FileError(_diagnosis(target, kind)) from error
        raise FileError(f"{target} cannot be read: {error.strerror or error}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise FileError(_diagnosis(target, kind)) from error
    if not isinstance(held, dict) or not isinstance(held.get("pyro_nfvi"), str):
        raise FileError(
            f"{target} is a torch file, but no {kind} of pyro_nfvi. Load it with torch.load."
        )
    header = json.loads(held["pyro_nfvi"])
    if header["layout"] > _LAYOUT:
        raise FileError(
            f"{target} was written by pyro_nfvi {header['versions']['pyro_nfvi']}, which is newer "
            f"than this one ({__version__}). Upgrade pyro_nfvi to read it."
        )
    if header["kind"] != kind:
        raise FileError(f"{target} holds a {header['kind']} of pyro_nfvi, not a {kind}.")
    return header["spec"], held["tensors"]


def _diagnosis(target: Path, kind: str) -> str:
    with target.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and not zipfile.is_zipfile(target):
        return f"{target} is truncated: copy or save the {kind} again."
    return (
        f"{target} is no {kind} of pyro_nfvi, or it is damaged. Load files that fit.save(path) "
        "wrote."
    )
