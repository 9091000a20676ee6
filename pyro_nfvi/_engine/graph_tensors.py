"""Tensors among the arguments of operations, looked at without leaving a trace."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._compat import without_modes


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in tensors(part)]
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in tensors(part)]
    return []


def frozen(tree: Any) -> Any:
    """The same arguments as a key of a dictionary."""
    if isinstance(tree, (tuple, list)):
        return tuple(frozen(x) for x in tree)
    if isinstance(tree, dict):
        return tuple((name, frozen(x)) for name, x in tree.items())
    # 1 == 1.0 == True, and 0.0 == -0.0: not the same number to an operation.
    return (type(tree), repr(tree)) if isinstance(tree, (int, float)) else tree


def meta(value: Any) -> Any:
    """A tensor without memory, of the same shape, strides and type."""
    if not isinstance(value, Tensor):
        return value
    with without_modes():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def uniform(tensor: Tensor) -> float | int | bool | None:
    """The number that a tensor holds everywhere, if it does."""
    if tensor.numel() == 0 or tensor.is_complex():
        return None
    with torch.no_grad():
        first = tensor.reshape(-1)[0]
        number: float | int | bool = first.item()
        if isinstance(number, float) and math.isnan(number):
            return number if bool(tensor.isnan().all()) else None
        if number == 0 and tensor.is_floating_point() and bool(tensor.signbit().any()):
            return number if bool(tensor.signbit().all()) and bool((tensor == 0).all()) else None
        return number if bool((tensor == first).all()) else None
