"""The training of a guide by ``pyro_nfvi.NFVI``: the argument of its callbacks."""

from __future__ import annotations

from pyro_nfvi._train.progress import StepInfo

__all__ = [
    "StepInfo",
]
