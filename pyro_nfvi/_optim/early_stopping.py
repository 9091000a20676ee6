"""Early stopping: a bound that is flat, or a score on held-out data that no longer improves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe


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
        before = usable(losses[-2 * span : -span], recipe)
        after = usable(losses[-span:], recipe)
        if min(len(before), len(after)) < span // 2:
            return False
        before, after = _winsorised(before, recipe), _winsorised(after, recipe)
        (mean_before, var_before), (mean_after, var_after) = _moments(before), _moments(after)
        self.rise = mean_before - mean_after
        error = math.sqrt(var_before / len(before) + var_after / len(after))
        return self.rise < max(recipe.tolerance, error)


@dataclass
class EarlyStopping:
    """Count the looks at held-out data since the best one.

    Attributes:
        patience: Looks without improvement after which :meth:`see` gives True; 0 for never.
        best: Lowest loss until now.
        stale: Looks since then.

    Source: Prechelt 1998, Early stopping - but when?, in Neural Networks: Tricks of the Trade.

    Example:
        >>> from pyro_nfvi._optim.early_stopping import EarlyStopping
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.see(loss) for loss in (3.0, 2.0, 2.5, 2.2)], stopping.best
        ([False, False, False, True], 2.0)
    """

    patience: int
    best: float = math.inf
    stale: int = 0

    def see(self, loss: float, *, counts: bool = True) -> bool:
        """Take one more loss; return True once it has not improved for ``patience`` looks.

        Args:
            loss: The loss; infinite where it is not finite.
            counts: False where a loss that is no better does not count, as during a warm-up.
        """
        if loss < self.best:
            self.best, self.stale = loss, 0
        elif counts:
            self.stale += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Tell whether the patience is spent."""
        return bool(self.patience) and self.stale >= self.patience


def usable(losses: Sequence[float], recipe: ConvergenceRecipe) -> list[float]:
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
