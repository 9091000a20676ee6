"""``Timing``: the seconds of one call, split among its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

#: A part of a call that has a time of its own.
Part: TypeAlias = Literal[
    "set_up",
    "capture",
    "compile",
    "comparison",
    "parameters",
    "gaussian",
    "modes",
    "training",
    "scoring",
    "checks",
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Timing:
    """Seconds of wall clock of one call of ``NFVI.run``, part by part.

    The parts are disjoint and cover the call: :attr:`parts` sums to ``total``. All candidates
    count, those that were not kept too.

    Attributes:
        total: The whole call.
        set_up: Traces of the model, construction of guide and log joint, and their checks.
        capture: Recording of log joint and steps as graphs.
        compile: Waiting for compiled code: for the compiler, or for the cache.
        comparison: Comparison of recorded and compiled code with the model.
        parameters: Start and settling of the model's own parameters.
        gaussian: The Gaussian stage.
        modes: The search for modes.
        training: Steps of training, of flows and components.
        scoring: Draws of a guide with both densities, and the choice of its best state.
        checks: Examinations of candidates and of the result.
        other: Rest of the call.
        steps: Number of steps of training, to which ``training`` belongs.

    Example:
        >>> from pyro_nfvi._timing import Timing
        >>> timing = Timing(total=3.0, gaussian=1.0, training=1.5, other=0.5, steps=300)
        >>> sum(timing.parts.values()), timing.step
        (3.0, 0.005)
    """

    total: float = 0.0
    set_up: float = 0.0
    capture: float = 0.0
    compile: float = 0.0
    comparison: float = 0.0
    parameters: float = 0.0
    gaussian: float = 0.0
    modes: float = 0.0
    training: float = 0.0
    scoring: float = 0.0
    checks: float = 0.0
    other: float = 0.0
    steps: int = 0

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part by name, in the order of the call; they sum to ``total``."""
        return {name: getattr(self, name) for name in (*PARTS, "other")}

    @property
    def step(self) -> float:
        """Seconds of one step of training, on average; 0 without any."""
        return self.training / self.steps if self.steps else 0.0

    def __str__(self) -> str:
        """Return the total with its parts, longest first, those below 1 % together."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        large = [(name, s) for name, s in parts if name != "other" and s >= 0.01 * self.total]
        rest = self.total - sum(seconds for _, seconds in large)
        words = [f"{name.replace('_', '-')} {seconds:.2f}" for name, seconds in large]
        return f"{self.total:.2f} s ({', '.join([*words, f'other {max(0.0, rest):.2f}'])})"

    def to_json(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Timing:
        """Read the fields from a file, those of version 0.1 too.

        Raises:
            ValueError: A value is no number of seconds or steps, or a name is unknown.
        """
        for name, value in found.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ValueError(f"its time {name!r} is {value!r}, not a number of seconds")
        if "fit" in found:
            return cls._of_0_1(found)
        unknown = set(found) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"its times have a part {min(unknown)!r}, which is none")
        return cls(**found)

    @classmethod
    def _of_0_1(cls, found: Mapping[str, float]) -> Timing:
        """Read the times of version 0.1: ``setup`` was all that came before the kept training."""
        training, scoring = found["fit"], found.get("evaluate", 0.0)
        capture, compiling = found.get("capture", 0.0), found.get("compile", 0.0)
        known = training + scoring + capture + compiling
        total = max(found.get("total", 0.0), known)
        return cls(
            total=total,
            capture=capture,
            compile=compiling,
            training=training,
            scoring=scoring,
            other=total - known,
            steps=round(found.get("steps_per_s", 0.0) * training),
        )
