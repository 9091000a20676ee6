"""Weights that change with the step: KL warm-up, cycles, tempering; for VAEs as for fits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyro_nfvi._validation import number
from pyro_nfvi.errors import OptionError


class Schedule(ABC):
    """A weight as a function of the number of steps taken.

    A schedule holds no state: the step is its state, so that a resumed run goes on where it was.
    ``spec`` describes it with what JSON can hold, and :func:`schedule_from_spec` reads that.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the weight of step ``step``, counted from 0."""

    @property
    @abstractmethod
    def settled(self) -> int:
        """Step from which the weight stays as it is; early stopping waits for it."""

    def spec(self) -> dict[str, Any]:
        """Describe the schedule."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def _check(name: str, what: str, value: float, *, least: float) -> None:
    number(f"{name}: {what}", value, least=least)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight at every step; 1 is the plain ELBO, another value a beta-VAE.

    Source: Higgins et al. 2017 (ICLR), equation 4.

    Example:
        >>> Constant(4.0)(17)
        4.0
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _check("Constant", "a value", self.value, least=0)

    def __call__(self, step: int) -> float:
        return self.value

    @property
    def settled(self) -> int:
        return 0


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from ``start`` to ``end`` over ``steps`` steps, then ``end``: KL warm-up.

    Source: Bowman et al. 2016, arXiv:1511.06349, section 3.1; Sonderby et al. 2016,
    arXiv:1602.02282.

    Example:
        >>> warm_up = Linear(steps=100)
        >>> warm_up(0), warm_up(50), warm_up(1000)
        (0.0, 0.5, 1.0)
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("Linear", "steps", self.steps, least=0)
        _check("Linear", "start", self.start, least=0)
        _check("Linear", "end", self.end, least=0)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * step / self.steps

    @property
    def settled(self) -> int:
        return self.steps


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Warm-ups in turn: in each period a rise over a share ``ramp`` of it, then ``end``.

    Args:
        period: Steps of a cycle.
        cycles: Number of cycles, after which the weight stays at ``end``.
        ramp: Share of a period over which the weight rises.
        start: Weight at the beginning of each cycle.
        end: Weight at its end.

    Source: Fu et al. 2019, arXiv:1903.10145, equation 6.

    Example:
        >>> beta = Cyclic(period=100, cycles=2)
        >>> beta(25), beta(75), beta(100), beta(200)
        (0.5, 1.0, 0.0, 1.0)
    """

    period: int
    cycles: int = 4
    ramp: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("Cyclic", "a period", self.period, least=1)
        _check("Cyclic", "cycles", self.cycles, least=1)
        if not 0 < self.ramp <= 1:
            raise OptionError(f"Cyclic needs a ramp above 0 and up to 1; got {self.ramp!r}.")

    def __call__(self, step: int) -> float:
        if step >= self.settled:
            return self.end
        share = (step % self.period) / self.period / self.ramp
        return self.start + (self.end - self.start) * min(1.0, share)

    @property
    def settled(self) -> int:
        return self.period * self.cycles


@dataclass(frozen=True)
class Tempered(Schedule):
    r"""Rezende and Mohamed's inverse temperature of the **joint**: :math:`\min(1, b_0 + t/T)`.

    Not KL warm-up: it multiplies :math:`\log p(x, z)`, the prior included, and leaves
    :math:`\log q` alone.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, equation 20 (b0 = 0.01, T = 10000).

    Example:
        >>> Tempered()(0), Tempered()(20_000)
        (0.01, 1.0)
    """

    steps: int = 10_000
    start: float = 0.01

    def __post_init__(self) -> None:
        _check("Tempered", "steps", self.steps, least=1)
        _check("Tempered", "start", self.start, least=0)

    def __call__(self, step: int) -> float:
        return min(1.0, self.start + step / self.steps)

    @property
    def settled(self) -> int:
        return math.ceil((1 - self.start) * self.steps)


_KINDS: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (Constant, Linear, Cyclic, Tempered)
}


def schedule_from_spec(spec: Mapping[str, Any]) -> Schedule:
    """Build a schedule from what ``schedule.spec()`` returned.

    Example:
        >>> schedule_from_spec(Linear(steps=10).spec())
        Linear(steps=10, start=0.0, end=1.0)
    """
    options = dict(spec)
    try:
        return _KINDS[options.pop("kind")](**options)
    except (KeyError, TypeError) as error:
        raise OptionError(f"No schedule is described by {dict(spec)!r}.") from error
