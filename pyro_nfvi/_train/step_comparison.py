"""Comparison of a captured step with the eager one, from the same state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_nfvi._compat import DispatchMode
from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._random import stream
from pyro_nfvi._train.step import EagerStep

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Tolerance:
    """Numbers by which two steps count as the same.

    Attributes:
        single, double: Difference relative to the size of what is compared, which a few hundred
            well-conditioned operations of that precision never reach.
        coarse: The same for half precision.
        small: Share of the largest of its kind below which a value is rounding.
        spreads: Spreads of an eager step under random rounding that a difference may have. The
            largest of few draws understates the range, and orders of summation differ.
        most: Largest difference that random rounding can excuse: beyond it a wrong step could
            no longer be distinguished from a right one.
        repeats: Eager steps under random rounding.
        least_step: Difference of a parameter after a step that counts for nothing.
    """

    single: float = 2e-3
    double: float = 1e-8
    coarse: float = 2e-2
    small: float = 1e-3
    spreads: float = 10.0
    most: float = 2e-2
    repeats: int = 3
    least_step: float = 1e-6


_TOLERANCE = _Tolerance()


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """Return how far two steps on such parameters may be apart, relative to their size."""
    known = {torch.float32: _TOLERANCE.single, torch.float64: _TOLERANCE.double}
    return max(known.get(tensor.dtype, _TOLERANCE.coarse) for tensor in tensors)


def rounded_anew(run: Callable[[], _T]) -> Iterator[_T]:
    """Run a calculation a few times, each operation rounded at random.

    The spread of the results is the error that rounding alone makes, whatever the order of
    operations: an ill-conditioned Cholesky factor, say, amplifies it by the condition number.

    Args:
        run: The calculation, with all of its random numbers given.

    Cost:
        Each run is the calculation and a few microseconds for each of its operations.

    Source: Parker, Pierce and Eggert 2000, Monte Carlo arithmetic, Computing in Science and
    Engineering 2(4) 58-68 (random rounding of inexact operations).
    """
    for repeat in range(_TOLERANCE.repeats):
        with _RandomRounding(repeat):
            found = run()
        yield found


class _RandomRounding(DispatchMode):
    """Within it, results of inexact operations are off by up to one unit in the last place.

    Args:
        seed: Of the errors.
    """

    #: Operations that move or choose numbers, besides views and those without tensors.
    _EXACT = frozenset(
        "_to_copy abs amax amin cat ceil clamp clamp_max clamp_min clone constant_pad_nd copysign "
        "diag_embed flip floor gather index index_put index_select masked_fill max maximum min "
        "minimum neg relu repeat roll round scatter select_backward sign slice_backward sort stack "
        "topk tril triu trunc where".split()
    )

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = stream(seed, "random rounding")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports the whole compiler of torch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        views = any(x.alias_info is not None for x in schema.returns)
        made = not any(torch.is_tensor(x) or isinstance(x, (list, tuple)) for x in args)
        if views or made or schema.name.rpartition("::")[2] in self._EXACT:
            return out
        if isinstance(out, (list, tuple)):
            return type(out)(self._off(x) for x in out)
        return self._off(out)

    def _off(self, x: Any) -> Any:
        """Return a result with errors of up to one unit in its last place."""
        if not torch.is_tensor(x) or not x.is_floating_point() or x.device.type != "cpu":
            return x
        error = torch.rand(x.shape, dtype=x.dtype, generator=self._generator)
        off = x + x * error.mul_(2).sub_(1).mul_(torch.finfo(x.dtype).eps)
        return torch.where(torch.isfinite(x), off, x)


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


def slack_of(least: float, size: float, spreads: Iterable[float]) -> float:
    """Return the largest difference between two steps that rounding explains.

    Args:
        least: What it is where the step is well conditioned.
        size: The size by which a difference matters.
        spreads: Changes of an eager step under random rounding.
    """
    spread = max((abs(x) if math.isfinite(x) else math.inf for x in spreads), default=0.0)
    return max(least, min(_TOLERANCE.spreads * spread, _TOLERANCE.most * size))


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
            size = max(_largest(value), _TOLERANCE.small * largest[key])
            spreads = [_largest(value - after.states[index][key]) for after in rounded]
            slack = slack_of(tolerance * size, size, spreads)
            if not bool(((value - own[key]).abs() <= slack).all()):
                return f"the optimiser's {key} of {name} differs"
        # The first step of Adam is the sign of the gradient, which is noise where that is 0.
        size = _largest(eager.values[index] - start.values[index].double())
        clear = torch.ones_like(eager.values[index], dtype=torch.bool)
        if "exp_avg" in theirs:
            clear = theirs["exp_avg"].abs() > _TOLERANCE.small * largest["exp_avg"]
        spreads = [_largest((eager.values[index] - x.values[index])[clear]) for x in rounded]
        slack = slack_of(10 * tolerance * size + _TOLERANCE.least_step, size, spreads)
        if not _largest((eager.values[index] - mine.values[index])[clear]) <= slack:
            return f"the step of {name} differs"
    return None
