"""Angles: points of the circle as real numbers, of which those a whole turn apart are one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi._typing import TensorPair


def split_turns(x: Tensor) -> TensorPair:
    """Return the angle in [-pi, pi), up to rounding, and the whole turns, in radians, beside it."""
    turns = 2 * math.pi * torch.floor((x.detach() + math.pi) / (2 * math.pi))
    return x - turns, turns


def wrap_angle(x: Tensor) -> Tensor:
    """Return the angle in [-pi, pi) of a real number; its gradient is 1.

    Example:
        >>> import torch
        >>> [round(float(one), 4) for one in wrap_angle(torch.tensor([3.0, 4.0]))]
        [3.0, -2.2832]
    """
    angle, _ = split_turns(x)
    # Rounding may leave the angle a last digit outside.
    point = angle.detach()
    inside = torch.where(point >= math.pi, -math.pi, point).clamp_min(-math.pi)
    return angle + (inside - point)
