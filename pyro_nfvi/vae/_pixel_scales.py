"""The scale of pixels in a file: integers with their levels, or real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi.errors import DataError
from pyro_nfvi.vae._recipe import DATA

_PARTS = ("train", "valid", "test")


def on_one_scale(
    images: Sequence[np.ndarray], name: str, levels: int | None = None
) -> tuple[list[Tensor], int]:
    """Integers as uint8 with their number of levels, other pixels as float32 with 0.

    Args:
        images: Training, validation and test images.
        name: The data, as messages call them.
        levels: Number of levels that the pixels have for certain; 0: real numbers; None: as images
            have them, 2 or 256, or as many as there are where all are below 17.

    Raises:
        DataError: Pixels that are not finite, integers beyond 0 to 255, or parts on different
            scales.
    """
    for x in images:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            bad = int((~np.isfinite(x)).sum())
            raise DataError(f"{name}: {bad} pixels are not finite. Drop or repair the images.")
        if x.dtype.kind == "f" and np.abs(x).max() > np.finfo(np.float32).max:
            raise DataError(
                f"{name}: pixels go up to {np.abs(x).max():g}, beyond the range of float32. Scale "
                "them."
            )
    if levels is not None:
        return _as_told(images, name, levels), levels
    whole = [_is_whole(x) for x in images]
    _check_scales(images, whole, name)
    if not all(whole):
        found = _as_levels(images)
        if found is None:
            return [torch.from_numpy(x.astype(np.float32)) for x in images], 0
        return [torch.from_numpy(x) for x in found], DATA.byte_levels
    low, high = min(x.min() for x in images), max(x.max() for x in images)
    if low < 0 or high > 255:
        raise DataError(
            f"{name}: integer pixels go from {low:g} to {high:g}; 0 to 255 are read. Save "
            f"{grey_recipe(float(low), float(high))}."
        )
    many = high > DATA.few_levels
    count = 2 if high <= 1 else DATA.byte_levels if many else int(high) + 1
    return [torch.from_numpy(x.astype(np.uint8)) for x in images], count


def _as_told(images: Sequence[np.ndarray], name: str, levels: int) -> list[Tensor]:
    if not levels:
        return [torch.from_numpy(x.astype(np.float32)) for x in images]
    if not 2 <= levels <= DATA.byte_levels:
        raise DataError(
            f"{name}: pixels have 2 to 256 levels, or 0 for real numbers; got {levels}."
        )
    if all(_is_whole(x) and x.min() >= 0 and x.max() < levels for x in images):
        return [torch.from_numpy(x.astype(np.uint8)) for x in images]
    found = _as_levels(images) if levels == DATA.byte_levels else None
    if found is not None:
        return [torch.from_numpy(x) for x in found]
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    raise DataError(
        f"{name}: {levels} levels are integers from 0 to {levels - 1}; the pixels go from {low:g} "
        f"to {high:g}{'' if all(map(_is_whole, images)) else ' and are not whole'}. Give the "
        "levels that they have, or 0 for real numbers."
    )


def grey_recipe(low: float, high: float) -> str:
    """Say in NumPy how pixels ``x`` of a range become integers 0 to 255.

    Example:
        >>> from pyro_nfvi.vae._pixel_scales import grey_recipe
        >>> grey_recipe(0.0, 0.9), grey_recipe(-1.0, 1.0)
        ('np.round(255 * x).astype(np.uint8)', 'np.round((x + 1.0) * (255 / 2.0)).astype(np.uint8)')
    """
    if low >= 0 and high <= 1:
        return "np.round(255 * x).astype(np.uint8)"
    if low >= 0 and high <= 256:  # 8 bits with noise, or scaled down and up again
        return "np.round(x).clip(0, 255).astype(np.uint8)"
    if low >= 0 and high == int(high):  # levels from 0, of 16 bits say
        return f"np.round(x * (255 / {high:.10g})).astype(np.uint8)"
    # Numbers with a point, for small integer types overflow otherwise.
    shift, span = (float(f"{value:.10g}") for value in (abs(low), high - low or 1.0))
    sign = "-" if low >= 0 else "+"
    return f"np.round((x {sign} {shift}) * (255 / {span})).astype(np.uint8)"


def _is_whole(x: np.ndarray) -> bool:
    return x.dtype.kind != "f" or bool((x == np.round(x)).all())


def _check_scales(images: Sequence[np.ndarray], whole: Sequence[bool], name: str) -> None:
    """Refuse parts of which some go to 255, say, and others to 1."""
    tops = [float(x.max()) for x in images]
    kinds = {x.dtype.kind == "f" for x in images}
    # A part of fractions up to 1, or of truth values, is on the scale of 0 to 1 for certain.
    small = any(
        top <= 1 and (not w or x.dtype.kind == "b") for x, w, top in zip(images, whole, tops)
    )
    large = any(w and top > 1 for w, top in zip(whole, tops))
    if (small and large) or (len(kinds) == 2 and min(tops) <= 1 < DATA.few_levels < max(tops)):
        scales = ", ".join(
            f"{part} up to {top:g} ({x.dtype})" for part, top, x in zip(_PARTS, tops, images)
        )
        raise DataError(
            f"{name}: the parts are on different scales: {scales}. Save all of them on one, such "
            f"as integers 0 to 255; from 0 to 1 they become that by {grey_recipe(0.0, 1.0)}."
        )


def _as_levels(images: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The integers k of pixels that are k/255 throughout; None if they are not."""
    found = []
    for x in images:
        if x.dtype.kind != "f" or x.min() < 0 or x.max() > 1:
            return None
        # Half precision rounds k/255 by 0.06 of a level; others by next to nothing, so that dark
        # images in steps of 1/256 are not taken for these.
        half = x.dtype.itemsize == 2
        scaled = (x.astype(np.float32) if half else x) * 255.0
        level = np.round(scaled)
        if not (
            np.abs(scaled - level) < (DATA.half_rounding if half else DATA.level_rounding)
        ).all():
            return None
        found.append(level.astype(np.uint8))
    return found
