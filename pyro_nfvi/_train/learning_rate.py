"""The learning rate: warm-up, a constant phase, then a cosine down to one percent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_nfvi.errors import OptionError

#: Steps of the linear warm-up.
_WARM_UP = 50
#: What the rate falls to at the end, relative to the constant phase.
_END = 0.01


def default_rate(dim: int) -> float:
    r"""Adam's rate for D latents: :math:`10^{-2}\min(1, \sqrt{20/D})`, at least 0.002.

    Example:
        >>> default_rate(10), round(default_rate(80), 4)
        (0.01, 0.005)
    """
    return max(2e-3, 1e-2 * min(1.0, math.sqrt(20 / dim)))


@dataclass
class Schedule:
    """Factor on the learning rate at each step; says when training is over.

    The constant phase ends when :meth:`begin_decay` is called, and at the latest in time for
    the decay to fit into ``max_steps`` and ``max_seconds``.

    Args:
        max_steps: Steps in all.
        early: Whether the decay may begin early; else it takes the last half.
        max_seconds: Time in all, or None.
    """

    max_steps: int
    early: bool = True
    max_seconds: float | None = None
    #: Step and second at which the decay began, and its length in steps; None while constant.
    decay: tuple[int, float, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int):
            raise OptionError(f"max_steps is a whole number of steps; got {self.max_steps!r}.")
        if self.max_steps < 1:
            raise OptionError(f"max_steps is at least 1; got {self.max_steps}.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise OptionError(f"max_seconds is a positive time or None; got {self.max_seconds!r}.")

    @property
    def latest(self) -> int:
        """Step at which the decay begins at the latest."""
        half = self.max_steps // 2
        return max(half, min(2 * self.max_steps // 3, self.max_steps - 200)) if self.early else half

    def begin_decay(self, step: int, seconds: float, *, to_the_end: bool = False) -> None:
        """End the constant phase.

        The decay takes half as many steps as were taken, at least 200, or with ``to_the_end``
        all that are left, in steps and in time.
        """
        left = max(1, self.max_steps - step)
        # What is left is little more than that at the latest step: take it all.
        all_left = to_the_end or step >= self.latest
        self.decay = (step, seconds, left if all_left else min(left, max(200, step // 2)))

    def advance(self, step: int, seconds: float) -> float:
        """Return the factor for ``step``, beginning the decay where it is due."""
        timed_out = self.max_seconds is not None and seconds >= 0.6 * self.max_seconds
        if self.decay is None and (step >= self.latest or timed_out):
            # Time is what ends this fit: 200 steps may be over long before it is.
            self.begin_decay(step, seconds, to_the_end=timed_out)
        warm = min(1.0, (step + 1) / _WARM_UP)
        if self.decay is None:
            return warm
        share = self._share(step, seconds)
        return warm * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * share)))

    def block(self, step: int, count: int, seconds: float) -> list[float]:
        """Return the factors of ``count`` steps that are taken at once, from ``step`` on.

        At most :meth:`ahead` of them, so that the decay begins where it is due.
        """
        first = self.advance(step, seconds)
        rest = range(step + 1, step + count)
        end = min(step + count, _WARM_UP - 1)
        warm = [(place + 1) / _WARM_UP for place in range(step + 1, end)]
        warm += [1.0] * (count - 1 - len(warm))
        if self.decay is None:
            return [first, *warm]
        begin, _, length = self.decay
        least = self._time_share(seconds)
        # The formula of advance, without its calls: a step may take a few microseconds.
        cos, pi, half = math.cos, math.pi, (1 - _END) * 0.5
        shares = [(place - begin) / length for place in rest]
        if least > 0 or (shares and shares[-1] > 1):
            shares = [min(1.0, max(share, least)) for share in shares]
        decay = [_END + half * (1 + cos(pi * share)) for share in shares]
        if not warm or warm[0] == 1:
            return [first, *decay]
        return [first, *(one * other for one, other in zip(warm, decay))]

    def ahead(self, step: int) -> int:
        """Steps from ``step`` on that nothing but time changes the course of, at least one."""
        end = self.latest if self.decay is None and step < self.latest else self.last
        return max(1, end - step)

    def finished(self, step: int, seconds: float) -> bool:
        """Whether no step is left: ``step`` is the number of steps taken."""
        timed_out = self.max_seconds is not None and seconds >= self.max_seconds
        return timed_out or step >= self.last

    @property
    def last(self) -> int:
        """Steps that there will be, as far as is known."""
        return self.max_steps if self.decay is None else self.decay[0] + self.decay[2]

    def _share(self, step: int, seconds: float) -> float:
        """How much of the decay is over, by steps or by time, whichever is further."""
        assert self.decay is not None
        begin, _, length = self.decay
        return min(1.0, max((step - begin) / length, self._time_share(seconds)))

    def _time_share(self, seconds: float) -> float:
        """How much of the decay is over by time."""
        assert self.decay is not None
        _, began, _ = self.decay
        if self.max_seconds is None or self.max_seconds <= began:
            return 0.0
        return (seconds - began) / (self.max_seconds - began)
