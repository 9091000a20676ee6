"""Rollback: back to the best block of steps where the bound has fallen for good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_nfvi._optim.recipe import RETREAT, RetreatRecipe


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
