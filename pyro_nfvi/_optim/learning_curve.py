"""Learning-curve extrapolation: what more steps would bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyro_nfvi._optim.early_stopping import usable
from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe


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
        found = usable(losses[k * block : (k + 1) * block], recipe)
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
