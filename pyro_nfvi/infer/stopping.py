"""When to stop: the smoothed bound has stopped rising."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Plateau", "StopReason"]


class StopReason(str):
    """Why a fit stopped: one word, with the whole sentence in ``detail``.

    One of ``converged``, ``max_steps``, ``max_seconds``, ``interrupted``, ``callback``.

    Example:
        >>> reason = StopReason("converged", "The bound rose by less than 0.01 nats.")
        >>> reason == "converged", reason.detail
        (True, 'The bound rose by less than 0.01 nats.')
    """

    detail: str

    def __new__(cls, word: str, detail: str = "") -> StopReason:
        reason = super().__new__(cls, word)
        reason.detail = detail
        return reason

    def __reduce__(self) -> tuple[type[StopReason], tuple[str, str]]:
        return type(self), (str(self), self.detail)


class Plateau:
    """Compares the bound's mean over the last blocks of steps with that of the blocks before.

    The bound is flat when it rose by less than ``tolerance`` nats, or by less than its standard
    error. The noise of the bound shrinks as the approximation gets good, so the test sharpens by
    itself.

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
        before = [x for x in losses[-2 * span : -span] if math.isfinite(x)]
        after = [x for x in losses[-span:] if math.isfinite(x)]
        if min(len(before), len(after)) < span // 2:
            return False
        (mean_before, var_before), (mean_after, var_after) = _moments(before), _moments(after)
        self.rise = mean_before - mean_after
        error = math.sqrt(var_before / len(before) + var_after / len(after))
        return self.rise < max(self.tolerance, error)


def _moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((x - mean) ** 2 for x in values) / max(1, len(values) - 1)
