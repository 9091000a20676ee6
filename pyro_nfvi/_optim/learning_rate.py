"""The learning rate: warm-up, a constant phase, then a cosine down to one percent."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._optim.recipe import LEARNING_RATE as _RECIPE
from pyro_nfvi.errors import OptionError


def default_rate(dim: int) -> float:
    r"""Adam's rate for D latents: :math:`10^{-2}\min(1, \sqrt{20/D})`, at least 0.002.

    Example:
        >>> default_rate(10), round(default_rate(80), 4)
        (0.01, 0.005)
    """
    fall = min(1.0, math.sqrt(_RECIPE.adam_dim / dim))
    return max(_RECIPE.least_adam, _RECIPE.adam * fall)


def cosine(share: float, end: float = _RECIPE.end) -> float:
    r"""Factor on the rate of a cosine decay, :math:`e + (1 - e)\tfrac12(1 + \cos \pi s)`.

    Args:
        share: How much of the decay is over, s, from 0 to 1.
        end: Factor e at its end.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5.

    Example:
        >>> cosine(0.0), cosine(1.0), cosine(0.5, end=0.0)
        (1.0, 0.01, 0.5)
    """
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass
class Schedule:
    """Factor on the learning rate at each step; says when training is over.

    The constant phase ends when :meth:`begin_decay` is called, and at the latest in time for
    the decay to fit into ``max_steps`` and ``max_seconds``.

    Args:
        max_steps: Steps in all.
        early: Let the decay begin early; else it takes the last half.
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
        late = min(2 * self.max_steps // 3, self.max_steps - _RECIPE.shortest_decay)
        return max(half, late) if self.early else half

    def begin_decay(self, step: int, seconds: float, *, to_the_end: bool = False) -> None:
        """End the constant phase.

        The decay takes half as many steps as were taken, at least 200, or with ``to_the_end``
        all that are left, in steps and in time.
        """
        left, shortest = max(1, self.max_steps - step), _RECIPE.shortest_decay
        # What is left is little more than that at the latest step: take it all.
        all_left = to_the_end or step >= self.latest
        self.decay = (step, seconds, left if all_left else min(left, max(shortest, step // 2)))

    def advance(self, step: int, seconds: float) -> float:
        """Return the factor for ``step``, beginning the decay where it is due."""
        timed_out = (
            self.max_seconds is not None and seconds >= _RECIPE.latest_share * self.max_seconds
        )
        if self.decay is None and (step >= self.latest or timed_out):
            # Time ends this fit: the shortest decay may be over long before.
            self.begin_decay(step, seconds, to_the_end=timed_out)
        warm = min(1.0, (step + 1) / _RECIPE.warm_up)
        if self.decay is None:
            return warm
        return warm * cosine(self._share(step, seconds))

    def block(self, step: int, count: int, seconds: float) -> list[float]:
        """Return the factors of ``count`` steps that are taken at once, from ``step`` on.

        At most :meth:`ahead` of them, so that the decay begins where it is due.
        """
        first = self.advance(step, seconds)
        rest = range(step + 1, step + count)
        end = min(step + count, _RECIPE.warm_up - 1)
        warm = [(place + 1) / _RECIPE.warm_up for place in range(step + 1, end)]
        warm += [1.0] * (count - 1 - len(warm))
        if self.decay is None:
            return [first, *warm]
        begin, _, length = self.decay
        least = self._time_share(seconds)
        # The formula of advance, without its calls: a step may take a few microseconds.
        cos, pi, half = math.cos, math.pi, (1 - _RECIPE.end) * 0.5
        shares = [(place - begin) / length for place in rest]
        if least > 0 or (shares and shares[-1] > 1):
            shares = [min(1.0, max(share, least)) for share in shares]
        decay = [_RECIPE.end + half * (1 + cos(pi * share)) for share in shares]
        if not warm or warm[0] == 1:
            return [first, *decay]
        return [first, *(one * other for one, other in zip(warm, decay))]

    def ahead(self, step: int) -> int:
        """Steps from ``step`` on that nothing but time changes the course of, at least one."""
        end = self.latest if self.decay is None and step < self.latest else self.last
        return max(1, end - step)

    def finished(self, step: int, seconds: float) -> bool:
        """Tell whether no step is left: ``step`` is the number of steps taken."""
        timed_out = self.max_seconds is not None and seconds >= self.max_seconds
        return timed_out or step >= self.last

    @property
    def last(self) -> int:
        """Steps that there will be, as far as is known."""
        return self.max_steps if self.decay is None else self.decay[0] + self.decay[2]

    def _share(self, step: int, seconds: float) -> float:
        """Return the share of the decay that is over, by steps or by time, whichever is further."""
        assert self.decay is not None
        begin, _, length = self.decay
        return min(1.0, max((step - begin) / length, self._time_share(seconds)))

    def _time_share(self, seconds: float) -> float:
        """Return the share of the decay that is over by time."""
        assert self.decay is not None
        _, began, _ = self.decay
        if self.max_seconds is None or self.max_seconds <= began:
            return 0.0
        return (seconds - began) / (self.max_seconds - began)


class GroupRates:
    """Learning rates of an optimiser's groups, as they are at the start.

    Args:
        optimizer: The optimiser.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        groups = optimizer.param_groups
        self._rates = torch.tensor([float(one["lr"]) for one in groups], dtype=torch.float64)
        # Pyro's ClippedAdam lowers its rate by itself, once in each step.
        decays = [float(one.get("lrd", 1.0)) for one in groups]
        self._decays = torch.tensor(decays, dtype=torch.float64)
        self._decayed = any(one != 1 for one in decays)

    def __len__(self) -> int:
        return len(self._rates)

    def block(self, factors: list[float], scale: float, step: int) -> Tensor:
        """Return the rates ``(n, groups)`` of n steps from ``step`` on, float64.

        Args:
            factors: Factors of the schedule, one for each step.
            scale: One that all have besides.
            step: Number of the first.
        """
        # torch.tensor looks at each number of a list.
        given = torch.frombuffer(array("d", factors), dtype=torch.float64)
        rates = (scale * given).unsqueeze(-1) * self._rates
        if self._decayed:
            taken = torch.arange(step, step + len(factors), dtype=torch.float64)
            rates = rates * self._decays ** taken.unsqueeze(-1)
        return rates
