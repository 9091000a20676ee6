"""Convergence: a test for a flat bound, a forecast of more steps, and a bound that has fallen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_nfvi._optim.recipe import CONVERGENCE, RETREAT, ConvergenceRecipe, RetreatRecipe


class StopReason(str):
    """The reason why a fit stopped: one word, with the whole sentence in ``detail``.

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
        recipe: The numbers of the test.
    """

    def __init__(self, recipe: ConvergenceRecipe = CONVERGENCE) -> None:
        self.recipe = recipe
        #: The last rise in nats, for reports.
        self.rise = math.nan

    def span(self, step: int, *, often: bool = False) -> int:
        """Return the steps between two tests, of which the latter is at ``step`` or next after it.

        A step may take a few microseconds, a test a hundred: later on, tests are rarer.

        Args:
            step: Number of a step, from 1.
            often: Not rarer: an average of states wants many.

        Example:
            >>> Plateau().span(1000), Plateau().span(1001), Plateau().span(5000, often=True)
            (50, 200, 50)
        """
        early = step <= self.recipe.early or often
        return self.recipe.block * (1 if early else self.recipe.later_blocks)

    def flat(self, losses: Sequence[float]) -> bool:
        """Tell whether the bound is flat after these losses; tested once per block.

        Example:
            >>> Plateau().flat([5.0] * 400), Plateau().flat([-0.1 * i for i in range(400)])
            (True, False)
        """
        count = len(losses)
        recipe, span = self.recipe, self.recipe.span
        if count < max(recipe.min_steps, 2 * span) or count % recipe.block:
            return False
        before = _usable(losses[-2 * span : -span], recipe)
        after = _usable(losses[-span:], recipe)
        if min(len(before), len(after)) < span // 2:
            return False
        before, after = _winsorised(before, recipe), _winsorised(after, recipe)
        (mean_before, var_before), (mean_after, var_after) = _moments(before), _moments(after)
        self.rise = mean_before - mean_after
        error = math.sqrt(var_before / len(before) + var_after / len(after))
        return self.rise < max(recipe.tolerance, error)


@dataclass(frozen=True)
class Forecast:
    """The rise of the bound that more steps would bring, extrapolated from the constant phase.

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
        """Tell whether the gain is beyond its noise."""
        return self.gain > 2 * self.error

    def __str__(self) -> str:
        if not self.significant:
            # A number that is noise would be read as one: none is given.
            if max(self.gain, 0.0) + 2 * self.error < CONVERGENCE.negligible:
                return f"{self.steps} steps more would bring next to nothing"
            return f"What {self.steps} steps more would bring is lost in the noise of the bound"
        return (
            f"{self.steps} steps more at the constant rate would bring about {self.gain:.2g} ± "
            f"{self.error:.1g} nats, of which the smaller rates have brought a part"
        )


def forecast(losses: Sequence[float], recipe: ConvergenceRecipe = CONVERGENCE) -> Forecast | None:
    r"""Extrapolate the losses of a constant phase: :math:`a + b/t`, to twice as many steps.

    A straight line in :math:`1/t` through the means of blocks of steps, the first third left out.
    The gain from t to 2t steps is :math:`b / 2t`. It is that of the bound at the constant rate.
    The smaller rates at the end of a fit bring part of it, often most: what a fit as a whole gains
    from twice the steps is less.

    Args:
        losses: Negative bounds at a constant rate, in nats.
        recipe: The numbers of the test.

    Returns:
        None where there are too few.

    Example:
        >>> found = forecast([10.0 + 100.0 / (t + 1) for t in range(1000)])
        >>> found.steps, round(found.gain, 3)
        (1000, 0.05)
    """
    block = recipe.block
    count = len(losses) // block
    points: list[tuple[float, float]] = []
    for k in range(count // 3, count):
        found = _usable(losses[k * block : (k + 1) * block], recipe)
        if 2 * len(found) >= block:
            points.append((1 / ((k + 0.5) * block), math.fsum(found) / len(found)))
    if len(points) < recipe.fewest_blocks:
        return None
    centre, level = (math.fsum(axis) / len(points) for axis in zip(*points))
    spread = math.fsum((x - centre) ** 2 for x, _ in points)
    slope = math.fsum((x - centre) * (y - level) for x, y in points) / spread
    rest = math.fsum((y - level - slope * (x - centre)) ** 2 for x, y in points)
    error = math.sqrt(rest / (len(points) - 2) / spread)
    steps = count * block
    return Forecast(steps, slope / (2 * steps), error / (2 * steps))


def _usable(losses: Sequence[float], recipe: ConvergenceRecipe) -> list[float]:
    """Return the losses that say something: a bound may be finite, and its square not."""
    return [x for x in losses if abs(x) < recipe.huge]


def _winsorised(values: list[float], recipe: ConvergenceRecipe) -> list[float]:
    """Put values far from the median at the edge of the range that counts as near."""
    middle = statistics.median(values)
    reach = recipe.far * statistics.median(abs(x - middle) for x in values)
    if not reach:
        return values
    return [min(max(x, middle - reach), middle + reach) for x in values]


def _moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((x - mean) ** 2 for x in values) / max(1, len(values) - 1)


@dataclass
class BestBlock:
    """The best block of steps until now, and how long the bound has been far below it.

    Attributes:
        recipe: Numbers by which a fall is distinguished from noise.
        bound: Mean bound of the block, in nats.
        spread: Range of its losses.
        low_steps: Steps in a row whose bound lies far below it.
        retreats: Numbers of the steps after which the fit went back to it.
    """

    recipe: RetreatRecipe = RETREAT
    bound: float = -math.inf
    spread: float = math.inf
    low_steps: int = 0
    retreats: list[int] = field(default_factory=list)

    def improve(self, losses: Sequence[float]) -> bool:
        """Take a block of finite losses as the best one if its mean bound is; return that."""
        mean = -math.fsum(losses) / len(losses)
        if mean < self.bound:
            return False
        self.bound, self.spread = mean, max(losses) - min(losses)
        self.low_steps = 0
        return True

    def fallen(self, bound: float, steps: int) -> float | None:
        """Return by how many nats the bound has fallen, once it has stayed low for long.

        Args:
            bound: Median of the last bounds, which one wild estimate does not move.
            steps: Number of them.

        Returns:
            None where it has not fallen, not for long, or the fit went back often enough.
        """
        fall = self.bound - bound
        low = fall >= max(self.recipe.fall, self.recipe.ranges * self.spread)
        self.low_steps = self.low_steps + steps if low else 0
        long = self.low_steps >= self.recipe.low_steps
        return fall if long and len(self.retreats) < self.recipe.most else None

    def retreated(self, step: int) -> None:
        """Note that the fit went back to the best block after ``step``."""
        self.retreats.append(step)
        self.low_steps = 0
