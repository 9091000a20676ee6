"""What grows while a fit runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Nats, and ranges of the losses of the best block, by which a bound that is lower has fallen;
#: steps in a row after which the fit goes back.
_FALL, _RANGES, _LOW_STEPS = 1.0, 2.0, 200


@dataclass
class LoopState:
    """Everything that grows while a fit runs; what a checkpoint holds beside the tensors."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_bad: int = 0
    #: Particles that each of the last steps left out.
    left_out: list[int] = field(default_factory=list)
    num_skipped: int = 0
    restores: list[int] = field(default_factory=list)
    rate: float = 1.0
    decay: tuple[int, float, int] | None = None
    converged: bool = False
    best_block: float = -math.inf
    #: Range of the losses of that block.
    best_spread: float = math.inf
    #: Steps in a row whose bound lies far below it.
    low_steps: int = 0
    #: Steps at which the fit went back to it.
    retreats: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def fallen(self, bound: float, steps: int) -> float | None:
        """How far the bound has fallen below the best block's, once it has stayed there for long.

        Args:
            bound: Median of the last bounds, which one wild estimate does not move.
            steps: How many they are.

        Returns:
            Nats; None where it has not fallen, or not for long.
        """
        fall = self.best_block - bound
        low = fall >= max(_FALL, _RANGES * self.best_spread)
        self.low_steps = self.low_steps + steps if low else 0
        return fall if self.low_steps >= _LOW_STEPS else None
