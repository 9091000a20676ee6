"""Torch's global random state, seeded for a while and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_nfvi._turn import turn

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw as of a seed inside; what the caller's state was, it is again afterwards.

    The state belongs to the process: threads that seed it take turns.

    Example:
        >>> import torch
        >>> from pyro_nfvi.random_state import seeded
        >>> before = torch.get_rng_state()
        >>> with seeded(0):
        ...     x = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if on_gpu else []
    with turn(), torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed devices that are not in use and not forked.
        torch.random.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        yield
