"""Differences that rounding explains between two evaluations of the same calculation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_nfvi._compat import DispatchMode
from pyro_nfvi._random import stream

_T = TypeVar("_T")


@dataclass(frozen=True)
class Tolerance:
    """Numbers by which two evaluations count as the same."""

    #: Difference relative to the size of what is compared, which a few hundred well-conditioned
    #: operations in single precision never reach.
    single: float = 2e-3
    #: The same in double precision.
    double: float = 1e-8
    #: The same in half precision.
    coarse: float = 2e-2
    #: Share of the largest of its kind below which a value is rounding.
    small: float = 1e-3
    #: Spreads of an eager evaluation under random rounding that a difference may have. The largest
    #: of few draws understates the range, and orders of summation differ.
    spreads: float = 10.0
    #: Largest difference that random rounding can excuse: beyond it a wrong step could no longer be
    #: distinguished from a right one.
    most: float = 2e-2
    #: Eager evaluations under random rounding.
    repeats: int = 3
    #: Difference of a parameter after a step that counts for nothing.
    least_step: float = 1e-6


TOLERANCE = Tolerance()


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """Return how far two evaluations of such tensors may be apart, relative to their size."""
    known = {torch.float32: TOLERANCE.single, torch.float64: TOLERANCE.double}
    return max(known.get(tensor.dtype, TOLERANCE.coarse) for tensor in tensors)


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
    for repeat in range(TOLERANCE.repeats):
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


def slack_of(least: float, size: float, spreads: Iterable[float]) -> float:
    """Return the largest difference between two evaluations that rounding explains.

    Args:
        least: What it is where the calculation is well conditioned.
        size: The size by which a difference matters.
        spreads: Changes of the eager one under random rounding.
    """
    spread = max((abs(x) if math.isfinite(x) else math.inf for x in spreads), default=0.0)
    return max(least, min(TOLERANCE.spreads * spread, TOLERANCE.most * size))
