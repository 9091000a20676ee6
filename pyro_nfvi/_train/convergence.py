"""When to stop: the smoothed bound has stopped rising."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Fewest blocks through which a line is laid.
_FEWEST = 4
#: Steps up to which a fit looks back after each block, and blocks between two looks later on.
_EARLY, _RARER = 1000, 4
#: Nats that are next to nothing.
_LITTLE = 0.05
#: A bound from here on says nothing, in nats.
_HUGE = 1e100
#: Median absolute deviations beyond which a bound is drawn in: far, since a start may be steep.
_FAR = 100.0


class StopReason(str):
    """Why a fit stopped: one word, with the whole sentence in ``detail``.

    One of ``converged``, ``max_steps``, ``max_seconds``, ``interrupted``, ``callback``,
    ``diverged`` (of an error's fit), and ``not_finite``: more than a tenth of the last particles
    were left out.
    ``unfinished`` is True where more steps would have raised the bound beyond its noise.

    Example:
        >>> reason = StopReason("converged", "The bound rose by less than 0.01 nats.")
        >>> reason == "converged", reason.detail
        (True, 'The bound rose by less than 0.01 nats.')
    """

    detail: str
    unfinished: bool

    def __new__(cls, word: str, detail: str = "", unfinished: bool = False) -> StopReason:  # noqa: FBT001, FBT002
        reason = super().__new__(cls, word)
        reason.detail, reason.unfinished = detail, unfinished
        return reason

    def __reduce__(self) -> tuple[type[StopReason], tuple[str, str, bool]]:
        return type(self), (str(self), self.detail, self.unfinished)


class Plateau:
    """Compares the bound's mean over the last blocks of steps with that of the blocks before.

    The bound is flat when it rose by less than ``tolerance`` nats, or by less than its standard
    error. The noise of the bound shrinks as the approximation gets good, so the test sharpens by
    itself. A wild bound counts as a merely far one: else it would be noise that hides any rise.

    Args:
        block: Steps in a block.
        window: Blocks on each side of the comparison.
        tolerance: Rise in nats that is not worth more steps.
        min_steps: Steps before which nothing is flat.
    """

    def __init__(
        self, block: int = 50, window: int = 4, tolerance: float = 0.01, min_steps: int = 400
    ) -> None:
        self.block, self.window = block, window
        self.tolerance, self.min_steps = tolerance, min_steps
        #: The last rise in nats, for reports.
        self.rise = math.nan

    def span(self, step: int, *, often: bool = False) -> int:
        """Steps between two looks back, of which the latter is at ``step`` or next after it.

        A step may take a few microseconds, a look a hundred: later on, looks are rarer.

        Args:
            step: Number of a step, from 1.
            often: Not rarer: an average of states wants many.

        Example:
            >>> Plateau().span(1000), Plateau().span(1001), Plateau().span(5000, often=True)
            (50, 200, 50)
        """
        return self.block if step <= _EARLY or often else _RARER * self.block

    def flat(self, losses: Sequence[float]) -> bool:
        """Whether the bound is flat after these losses; looked at once per block.

        Example:
            >>> Plateau().flat([5.0] * 400), Plateau().flat([-0.1 * i for i in range(400)])
            (True, False)
        """
        count = len(losses)
        span = self.block * self.window
        if count < max(self.min_steps, 2 * span) or count % self.block:
            return False
        before, after = _counting(losses[-2 * span : -span]), _counting(losses[-span:])
        if min(len(before), len(after)) < span // 2:
            return False
        before, after = _drawn_in(before), _drawn_in(after)
        (mean_before, var_before), (mean_after, var_after) = _moments(before), _moments(after)
        self.rise = mean_before - mean_after
        error = math.sqrt(var_before / len(before) + var_after / len(after))
        return self.rise < max(self.tolerance, error)


@dataclass(frozen=True)
class Outlook:
    """What more steps would bring, as the constant phase of the learning rate lets one expect.

    Attributes:
        steps: How many more: as many as the constant phase had.
        gain: Rise of the bound in nats, by extrapolation.
        error: Its standard error, of the noise of the bound alone.
    """

    steps: int
    gain: float
    error: float

    @property
    def significant(self) -> bool:
        """Whether the gain is beyond its noise."""
        return self.gain > 2 * self.error

    def __str__(self) -> str:
        if not self.significant:
            # A number that is noise would be read as one: none is given.
            if max(self.gain, 0.0) + 2 * self.error < _LITTLE:
                return f"{self.steps} steps more would bring next to nothing"
            return f"What {self.steps} steps more would bring is lost in the noise of the bound"
        return (
            f"{self.steps} steps more at the constant rate would bring about {self.gain:.2g} ± "
            f"{self.error:.1g} nats, of which the smaller rates have brought a part"
        )


def outlook(losses: Sequence[float], block: int = 50) -> Outlook | None:
    r"""Extrapolate the losses of a constant phase: :math:`a + b/t`, to twice as many steps.

    A straight line in :math:`1/t` through the means of blocks of steps, the first third left out.
    The gain from t to 2t steps is :math:`b / 2t`. It is that of the bound at the constant rate.
    The smaller rates at the end of a fit bring part of it, often most: what a fit as a whole gains
    from twice the steps is less.

    Args:
        losses: Negative bounds at a constant rate, in nats.
        block: Steps in a block.

    Returns:
        None where there are too few.

    Example:
        >>> found = outlook([10.0 + 100.0 / (t + 1) for t in range(1000)])
        >>> found.steps, round(found.gain, 3)
        (1000, 0.05)
    """
    count = len(losses) // block
    points: list[tuple[float, float]] = []
    for k in range(count // 3, count):
        found = _counting(losses[k * block : (k + 1) * block])
        if 2 * len(found) >= block:
            points.append((1 / ((k + 0.5) * block), math.fsum(found) / len(found)))
    if len(points) < _FEWEST:
        return None
    centre, level = (math.fsum(axis) / len(points) for axis in zip(*points))
    spread = math.fsum((x - centre) ** 2 for x, _ in points)
    slope = math.fsum((x - centre) * (y - level) for x, y in points) / spread
    rest = math.fsum((y - level - slope * (x - centre)) ** 2 for x, y in points)
    error = math.sqrt(rest / (len(points) - 2) / spread)
    steps = count * block
    return Outlook(steps, slope / (2 * steps), error / (2 * steps))


def _counting(losses: Sequence[float]) -> list[float]:
    """The losses that say something: a bound may be finite, and its square not."""
    return [x for x in losses if abs(x) < _HUGE]


def _drawn_in(values: list[float]) -> list[float]:
    """Put values far from the median at the edge of what is near."""
    middle = statistics.median(values)
    reach = _FAR * statistics.median(abs(x - middle) for x in values)
    if not reach:
        return values
    return [min(max(x, middle - reach), middle + reach) for x in values]


def _moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((x - mean) ** 2 for x in values) / max(1, len(values) - 1)
