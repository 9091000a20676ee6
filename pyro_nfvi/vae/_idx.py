"""Reading idx files, the format in which MNIST is published."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from pyro_nfvi._files.archives import Malformed, check_room
from pyro_nfvi.errors import FileError

_DTYPES = {
    0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8",
}  # fmt: skip


def looks_like_idx(path: Path) -> bool:
    """Tell whether a file is one of idx, packed or not, or is called so and is no npz file."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                start = packed.read(4)
    except (OSError, EOFError, zlib.error):
        start = b""
    if len(start) == 4 and start[:2] == b"\0\0" and start[2] in _DTYPES:
        return True
    name = path.name.removesuffix(".gz")
    return start[:2] != b"PK" and ("idx" in name or name.endswith("ubyte"))


def _content(source: Path) -> bytes:
    """Read a file; of a packed one, at most a byte more than its header declares.

    Raises:
        Malformed: Its header declares more than can be unpacked.
    """
    with source.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read()
    with gzip.open(source) as packed:
        start = packed.read(4)
        if len(start) < 4 or start[2] not in _DTYPES:
            return start
        start += packed.read(4 * start[3])
        axes = (len(start) - 4) // 4
        shape = struct.unpack(f">{axes}I", start[4 : 4 + 4 * axes])
        size = math.prod(shape) * np.dtype(_DTYPES[start[2]]).itemsize
        check_room(size, source.stat().st_size)
        return start + packed.read(size + 1)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an idx file, packed with gzip or not.

    Raises:
        FileError: No such file, not an idx file, or truncated; the message says which.

    Source: LeCun, Cortes and Burges, "The MNIST database", file formats.
    """
    source = Path(path)
    try:
        content = _content(source)
    except FileNotFoundError as error:
        raise FileError(f"There is no file {source}.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileError(
            f"{source} is truncated or damaged: it cannot be unpacked. Download it again."
        ) from error
    except (Malformed, MemoryError) as error:
        raise FileError(
            f"{source} is damaged, or too large for this machine: {error or 'no memory is left'}. "
            "Download it again, or take a part of it."
        ) from error
    except OSError as error:
        raise FileError(f"{source} cannot be read: {error.strerror or error}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES or not content[3]:
        raise FileError(
            f"{source} is no idx file: it starts with {content[:4]!r}, not with two zeros, a type "
            "and a number of axes."
        )
    dtype, axes = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise FileError(f"{source} is truncated within its header. Download it again.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    want = start + math.prod(shape) * dtype.itemsize
    if len(content) != want:
        what = "truncated" if len(content) < want else "longer than its header says"
        raise FileError(
            f"{source} is {what}: {len(content)} bytes, {want} for shape {shape}. Download it "
            "again."
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
