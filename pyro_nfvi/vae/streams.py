"""Random streams by key: the noise of a step is a function of seed and step, not of history."""

from __future__ import annotations

import torch

__all__ = ["key", "stream"]

_MASK = 0xFFFFFFFFFFFFFFFF


def key(seed: int, *parts: int) -> int:
    """Mix a seed and further numbers into a seed of its own.

    Source: splitmix64, Steele et al. 2014, OOPSLA, figure 16.

    Example:
        >>> key(0, 1) == key(0, 1), key(0, 1) == key(1, 0)
        (True, False)
    """
    mixed = seed & _MASK
    for part in parts:
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) & _MASK
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = ((mixed ^ (mixed >> shift)) * factor) & _MASK
        mixed ^= mixed >> 31
    return mixed & 0x7FFFFFFFFFFFFFFF


def stream(seed: int, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by :func:`key`.

    Example:
        >>> import torch
        >>> one, two = (torch.rand(3, generator=stream(0, 5, 7)) for _ in range(2))
        >>> torch.equal(one, two)
        True
    """
    return torch.Generator(device).manual_seed(key(seed, *parts))
