"""Memory for compiled code: it starts at a line of the cache, and much of it in large pages."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

#: Bytes of a large page.
_PAGED = 1 << 21


def aligned(count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers that start at a line of the cache; many of them lie in large pages."""
    size = torch.empty((), dtype=dtype).element_size()
    if count * size >= _PAGED and hasattr(mmap, "MADV_HUGEPAGE"):
        room = mmap.mmap(-1, count * size + _PAGED)  # the tensor keeps it alive
        with contextlib.suppress(OSError):
            room.madvise(mmap.MADV_HUGEPAGE)
        raw = torch.frombuffer(room, dtype=dtype)
        skip = (-raw.data_ptr() % _PAGED) // size
    else:
        raw = torch.empty(count + 64 // size, dtype=dtype)
        skip = (-raw.data_ptr() % 64) // size
    return raw[skip : skip + count]
