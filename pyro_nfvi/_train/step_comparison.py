"""Comparison of a captured step with the eager one, from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._engine.rounding import TOLERANCE, slack_of, tolerance_of
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._train.step import EagerStep


@dataclass(frozen=True)
class After:
    """The state that one step led to."""

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


def _largest(values: Tensor) -> float:
    """Largest absolute value; of an empty tensor there is none."""
    return float(values.abs().max()) if values.numel() else 0.0


def difference(
    start: Snapshot, eager: After, mine: After, rounded: Sequence[After] = ()
) -> str | None:
    """Say where two steps from one state differ by more than rounding, or None.

    Args:
        start: The state.
        eager: Where the eager step led.
        mine: Where the other led.
        rounded: Where eager steps under random rounding led; without them the steps are held to
            what well-conditioned ones differ by.
    """
    one, other = eager.result, mine.result
    # One that was skipped has no numbers to compare, and excuses nothing.
    rounded = [after for after in rounded if bool(after.result.ok[0])]
    if bool(one.ok[0]) != bool(other.ok[0]):
        words = {True: "is taken", False: "is skipped"}
        return f"its step {words[bool(other.ok[0])]}, an eager one {words[bool(one.ok[0])]}"
    if int(one.num_bad[0]) != int(other.num_bad[0]):
        return f"it leaves out {int(other.num_bad[0])} particles, not {int(one.num_bad[0])}"
    tolerance = tolerance_of(start.values)
    expected, found = float(one.bounds[0]), float(other.bounds[0])
    size = 1 + abs(expected)
    spreads = [float(after.result.bounds[0]) - expected for after in rounded]
    slack = slack_of(tolerance * size, size, spreads)
    if expected == expected and not abs(expected - found) <= slack:
        return f"its bound is {found:.8g}, not {expected:.8g}"
    # What is small beside the rest of its kind is rounding, indistinguishable from 0.
    largest: dict[str, float] = {}
    for state in eager.states:
        for key, value in state.items():
            largest[key] = max(largest.get(key, 0.0), _largest(value))
    for index, (theirs, own) in enumerate(zip(eager.states, mine.states, strict=True)):
        name = f"parameter {index} of shape {tuple(start.values[index].shape)}"
        if theirs.keys() != own.keys():
            return f"the optimiser's state of {name} has {sorted(own)}, not {sorted(theirs)}"
        for key, value in theirs.items():
            if value.shape != own[key].shape:
                return f"the optimiser's {key} of {name} has another shape"
            size = max(_largest(value), TOLERANCE.small * largest[key])
            spreads = [_largest(value - after.states[index][key]) for after in rounded]
            slack = slack_of(tolerance * size, size, spreads)
            if not bool(((value - own[key]).abs() <= slack).all()):
                return f"the optimiser's {key} of {name} differs"
        # The first step of Adam is the sign of the gradient, which is noise where that is 0.
        size = _largest(eager.values[index] - start.values[index].double())
        clear = torch.ones_like(eager.values[index], dtype=torch.bool)
        if "exp_avg" in theirs:
            clear = theirs["exp_avg"].abs() > TOLERANCE.small * largest["exp_avg"]
        spreads = [_largest((eager.values[index] - x.values[index])[clear]) for x in rounded]
        slack = slack_of(10 * tolerance * size + TOLERANCE.least_step, size, spreads)
        if not _largest((eager.values[index] - mine.values[index])[clear]) <= slack:
            return f"the step of {name} differs"
    return None
