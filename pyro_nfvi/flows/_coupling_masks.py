"""Masks of coupling layers: which coordinates are moved, given the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi.errors import OptionError


def halves(dim: int) -> Tensor:
    """Move the second half, given the first.

    Example:
        >>> halves(5).tolist()
        [False, False, True, True, True]
    """
    return torch.arange(dim) >= dim // 2


def alternating(dim: int) -> Tensor:
    """Move every second coordinate.

    Example:
        >>> alternating(4).tolist()
        [False, True, False, True]
    """
    return torch.arange(dim) % 2 == 1


def random_halves(dim: int, seed: int = 0) -> Tensor:
    """Move a random half that depends on ``dim`` and ``seed`` alone.

    Example:
        >>> int(random_halves(6).sum())
        3
    """
    return halves(dim)[torch.randperm(dim, generator=stream(seed, "mask"))]


def checkerboard(channels: int, height: int, width: int) -> Tensor:
    """Move the black fields of an image, flattened from (channels, height, width).

    Source: Dinh et al. 2017, arXiv:1605.08803, section 3.4.

    Example:
        >>> checkerboard(1, 2, 2).tolist()
        [False, True, True, False]
    """
    rows, columns = torch.arange(height).unsqueeze(-1), torch.arange(width)
    return ((rows + columns) % 2 == 1).expand(channels, height, width).reshape(-1)


def channel(channels: int, height: int, width: int) -> Tensor:
    """Move the second half of the channels of an image, flattened likewise.

    Example:
        >>> channel(2, 1, 2).tolist()
        [False, False, True, True]
    """
    return halves(channels).repeat_interleave(height * width)


_NAMED: dict[str, Callable[[int], Tensor]] = {
    "halves": halves,
    "alternating": alternating,
    "random": random_halves,
}
#: Masks that a name is enough for; images need their shape: :func:`checkerboard`, ...
MASK_NAMES: tuple[str, ...] = tuple(_NAMED)


def make_mask(mask: str | Tensor | Sequence[bool], dim: int) -> Tensor:
    """Return a mask by name, or check a given one: some coordinates move, some do not.

    Raises:
        OptionError: D = 1, an unknown name, a wrong length, or all coordinates alike.

    Example:
        >>> make_mask([True, False], 2).tolist()
        [True, False]
    """
    if dim < 2:
        raise OptionError(
            "A coupling layer needs at least 2 dimensions: it moves some given the others. For "
            "dim=1 take 'planar*8', or Elementwise with a SplineTransformer."
        )
    if isinstance(mask, str):
        if mask not in _NAMED:
            raise OptionError(
                f"Unknown mask {mask!r}; known are {', '.join(MASK_NAMES)}, or give D booleans "
                "(flows.masks.checkerboard and channel make them for images)."
            )
        return _NAMED[mask](dim)
    try:
        given = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"A mask needs {dim} booleans, or a name; got {mask!r}.") from error
    if given.dtype != torch.bool or given.shape != (dim,):
        raise OptionError(
            f"A mask needs {dim} booleans; got {given.dtype} of shape {tuple(given.shape)}."
        )
    if bool(given.all()) or not bool(given.any()):
        raise OptionError("A mask needs coordinates that move and coordinates that do not.")
    return given
