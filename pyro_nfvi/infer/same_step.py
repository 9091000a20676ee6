"""Comparison of a captured step with the eager one, from the same state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi.engine import BlockResult
from pyro_nfvi.infer.snapshot import Snapshot
from pyro_nfvi.infer.step import EagerStep

__all__ = ["After", "difference", "tolerance_of"]

#: How far a captured step may be from an eager one, relative to its size.
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """Return how far two steps on such parameters may be apart, relative to their size."""
    return max(_TOLERANCE.get(tensor.dtype, 2e-2) for tensor in tensors)


@dataclass(frozen=True)
class After:
    """Where one step led."""

    result: BlockResult
    values: list[Tensor]
    states: list[dict[str, Tensor]]

    @classmethod
    def take(cls, result: BlockResult, step: EagerStep) -> After:
        states = [
            {
                key: value.detach().double().clone()
                for key, value in step.optimizer.state.get(param, {}).items()
                if torch.is_tensor(value)
            }
            for param in step.params
        ]
        return cls(result, [param.detach().double().clone() for param in step.params], states)


def difference(start: Snapshot, eager: After, mine: After) -> str | None:
    """Say where two steps from one state differ by more than rounding, or None."""
    one, other = eager.result, mine.result
    if bool(one.ok[0]) != bool(other.ok[0]):
        words = {True: "is taken", False: "is skipped"}
        return f"its step {words[bool(other.ok[0])]}, an eager one {words[bool(one.ok[0])]}"
    if int(one.num_bad[0]) != int(other.num_bad[0]):
        return f"it leaves out {int(other.num_bad[0])} particles, not {int(one.num_bad[0])}"
    tolerance = tolerance_of(start.values)
    expected, found = float(one.bounds[0]), float(other.bounds[0])
    if expected == expected and not abs(expected - found) <= tolerance * (1 + abs(expected)):
        return f"its bound is {found:.8g}, not {expected:.8g}"
    # What is small beside the rest of its kind is rounding, and told apart from 0 by nobody.
    largest: dict[str, float] = {}
    for state in eager.states:
        for key, value in state.items():
            largest[key] = max(largest.get(key, 0.0), float(value.abs().max()))
    for index, (theirs, own) in enumerate(zip(eager.states, mine.states, strict=True)):
        name = f"parameter {index} of shape {tuple(start.values[index].shape)}"
        if theirs.keys() != own.keys():
            return f"the optimiser's state of {name} has {sorted(own)}, not {sorted(theirs)}"
        for key, value in theirs.items():
            if value.shape != own[key].shape:
                return f"the optimiser's {key} of {name} has another shape"
            slack = tolerance * max(float(value.abs().max()), 1e-3 * largest[key])
            if not bool(((value - own[key]).abs() <= slack).all()):
                return f"the optimiser's {key} of {name} differs"
        moved = eager.values[index] - start.values[index].double()
        apart = (eager.values[index] - mine.values[index]).abs()
        if "exp_avg" in theirs:
            # The first step of Adam is the sign of the gradient, which is noise where that is 0.
            apart = apart[theirs["exp_avg"].abs() > 1e-3 * largest["exp_avg"]]
        slack = 10 * tolerance * float(moved.abs().max()) + 1e-6 * float(apart.numel() > 0)
        if not bool((apart <= slack).all()):
            return f"the step of {name} differs"
    return None
