"""``Options``: the checked options of one fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_nfvi._train.optimizer import OptimSpec
from pyro_nfvi._train.progress import Progress, StepInfo
from pyro_nfvi.infer._guide_spec import GuideSpec, baseline
from pyro_nfvi.infer._recipe import GAUSSIAN_START
from pyro_nfvi.objectives._objective import Objective


@dataclass(frozen=True)
class Options:
    """The options of one fit, as :class:`NFVI` documents them."""

    guide: GuideSpec
    objective: Objective
    optim: OptimSpec
    num_particles: int
    max_steps: int
    more_steps: int
    stop: bool
    precondition: bool
    explore: str
    engine: str
    seed: int | None
    callbacks: tuple[Callable[[StepInfo], Any], ...]
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    resume: bool
    progress: Progress

    @property
    def automatic(self) -> bool:
        """True where the flow is selected among candidates that grow from a Gaussian."""
        return self.guide == "auto" and self.precondition and self.stop

    @property
    def baseline(self) -> tuple[str, int | None] | None:
        """Name of an approximation that is computed, with its number of paths; None for others."""
        return baseline(self.guide)

    @property
    def outer(self) -> str:
        """Kind of the affine map outside of the flow."""
        return "whitened" if self.precondition else "diagonal"

    @property
    def effort(self) -> float:
        """Factor on the steps of the Gaussian stage: below 1 for a fit of few steps."""
        return min(1.0, self.max_steps / GAUSSIAN_START.whole_steps)
