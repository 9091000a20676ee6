"""Copies of everything that a fit trains, to go back to and to write down."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """Parameters and the optimiser's state at one step."""

    step: int
    values: tuple[Tensor, ...]
    optimizer: dict[str, Any]

    @classmethod
    def take(
        cls, step: int, params: Sequence[Tensor], optimizer: torch.optim.Optimizer
    ) -> Snapshot:
        """Copy the present state."""
        values = tuple(param.detach().clone() for param in params)
        return cls(step, values, copy.deepcopy(optimizer.state_dict()))

    def put_values(self, params: Sequence[Tensor]) -> None:
        """Copy the parameters back, in place."""
        with torch.no_grad():
            for param, value in zip(params, self.values, strict=True):
                param.copy_(value)

    def put(self, params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Copy everything back."""
        self.put_values(params)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
