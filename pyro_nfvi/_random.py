"""Random streams: the one source of seeds and generators.

Every stream is named by a seed and labels, so that no two uses share numbers: the training noise of
one seed is not the evaluation noise of another, and ``fit.sample(seed=0)`` has nothing of the noise
that the fit of seed 0 was trained with. A stream depends on its name alone, not on what was drawn
before.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pyro_nfvi._model_lock import turn


def fold_in(seed: int, *labels: int | str) -> int:
    """Mix labels into a seed; the result is a seed of its own, below 2^63.

    Different labels, and the same labels in another order, give unrelated seeds. A stream of
    torch's CPU generator takes 32 of the bits, so that two of n streams coincide with probability
    n^2 / 2^33.

    Args:
        seed: A whole number.
        *labels: What the stream is for: a name, the number of a step. At least one, so that no
            stream is that of ``torch.manual_seed(seed)``.

    Source: splitmix64, Steele et al. 2014, OOPSLA, figure 16; text by BLAKE2b.

    Example:
        >>> fold_in(0, "training", 1) == fold_in(0, "training", 1)
        True
        >>> len({fold_in(0, 1), fold_in(1, 0), fold_in(0, "a"), fold_in(0, "b"), fold_in(0, 1, 1)})
        5
    """
    if not labels:
        raise TypeError("fold_in needs a label: the name of what the stream is for")
    # The constants of splitmix64: its increment (odd, 2^64 over the golden ratio), and the shifts
    # and multipliers of its finaliser.
    increment, mask = 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF
    rounds = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
    mixed = seed & mask
    for label in labels:
        mixed = (mixed * increment + _number(label) + 1) & mask
        for shift, factor in rounds:
            mixed = ((mixed ^ (mixed >> shift)) * factor) & mask
        mixed ^= mixed >> 31
    return mixed & 0x7FFFFFFFFFFFFFFF


def stream(seed: int, *labels: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator at the start of a stream; see :func:`fold_in`.

    Example:
        >>> import torch
        >>> one, two = (torch.rand(3, generator=stream(0, "noise", 7)) for _ in range(2))
        >>> torch.equal(one, two)
        True
    """
    return torch.Generator(device).manual_seed(fold_in(seed, *labels))


def numpy_stream(seed: int, *labels: int | str) -> np.random.Generator:
    """Return a NumPy generator at the start of a stream; see :func:`fold_in`.

    Example:
        >>> int(numpy_stream(0, "split").integers(10)) in range(10)
        True
    """
    return np.random.default_rng(fold_in(seed, *labels))


def fresh_seed() -> int:
    """Draw a seed without touching any random state."""
    return secrets.randbits(31)


@contextmanager
def seeded(seed: int, *labels: int | str) -> Iterator[None]:
    """Put torch's global random state at the start of a stream; the caller's comes back afterwards.

    The state belongs to the process: threads that seed it take turns.

    For code that cannot be handed a generator: a user's model, ``torch.distributions``, the initial
    values of modules.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with seeded(0, "example"):
        ...     x = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if on_gpu else []
    mixed = fold_in(seed, *labels)
    with turn(), torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed devices that are not in use and not forked.
        torch.random.default_generator.manual_seed(mixed)
        if on_gpu:
            torch.cuda.manual_seed_all(mixed)
        yield


def _number(label: int | str) -> int:
    if isinstance(label, str):
        return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")
    return label
