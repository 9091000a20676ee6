"""Torch files read within bounds: sizes are looked at before anything is unpacked or made."""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_PLAIN = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds beyond which a file is refused."""

    #: Bytes of the part that holds all but the numbers; those of fits take some kilobytes.
    description_bytes: int = 128 * 1024 * 1024
    #: Entries of its nested containers; a fit has some thousand.
    entries: int = 2_000_000
    #: Levels of nested containers; a fit has fewer than ten.
    depth: int = 64
    #: Times that a number of the file may occur among its tensors: weights can be shared.
    repeats: int = 16
    #: Bytes that deflate, which zip and gzip use, can at most make of one.
    inflation: int = 1032
    #: Number of the layout that is written; a file of a higher one is refused.
    layout: int = 1


LIMITS = ArchiveLimits()


class Malformed(Exception):
    """A file is not what this library writes; the message is a clause that says why."""


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may never end, is refused.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _binary())
    file = os.fdopen(descriptor, "rb")
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(str(path))
    raise OSError("it is no plain file")


def _binary() -> int:
    return getattr(os, "O_BINARY", 0)


def check_room(size: int, packed: int) -> None:
    """Look at a size that a packed file declares, before it is unpacked.

    Args:
        size: Bytes that it would take.
        packed: Bytes of the file.

    Raises:
        Malformed: Nothing can be packed so well, or it is more than half of the memory.
    """
    if size > LIMITS.inflation * packed + 4096:
        raise Malformed(f"{packed} bytes cannot unpack to {size}")
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory // 2:
            raise Malformed(f"it would unpack to {size} bytes, more than half of the memory")


def check_archive(file: BinaryIO) -> None:
    """Look at the sizes in a torch file's directory.

    Torch stores its parts as they are, so that what is unpacked is no larger than the file.

    Raises:
        Malformed: Parts are packed, overlap, or are too large for what they hold.
    """
    whole = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
            raise Malformed(f"its part {part.filename[:80]!r} is compressed")
        if part.filename.endswith("data.pkl") and part.file_size > LIMITS.description_bytes:
            raise Malformed(f"its description takes {part.file_size} bytes")
    if len({part.filename for part in parts}) < len(parts):
        raise Malformed("it holds two parts of one name")
    if sum(part.file_size for part in parts) > whole:
        raise Malformed("its parts overlap")


def check_contents(held: Any, whole: int) -> None:
    """Look at what was read: plain containers, of plain values and of tensors that hold numbers.

    Args:
        held: What torch read.
        whole: Bytes of the file.

    Raises:
        Malformed: A tensor repeats few numbers many times, is of an odd kind, or containers are
            nested too deep or hold one another too often.
    """
    total, entries, rest = 0, 0, [(held, 0)]
    while rest:
        value, depth = rest.pop()
        entries += 1
        if entries > LIMITS.entries or depth > LIMITS.depth:
            raise Malformed("its containers are nested beyond measure")
        if isinstance(value, dict):
            if not all(isinstance(key, _PLAIN) for key in value):
                raise Malformed("its names are no words or numbers")
            rest += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            rest += [(item, depth + 1) for item in value]
        elif isinstance(value, Tensor):
            total += _size(value)
            if total > LIMITS.repeats * whole:
                raise Malformed("its tensors repeat the numbers of the file many times")
        elif not isinstance(value, _PLAIN):
            raise Malformed(f"it holds a {type(value).__name__}")


def _size(tensor: Tensor) -> int:
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise Malformed("it holds a tensor of an odd kind")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise Malformed(f"a tensor of shape {tuple(tensor.shape)} repeats fewer numbers")
    return size
