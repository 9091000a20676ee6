"""Numbers of training loops, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecoveryRecipe:
    """Numbers of the policy for steps without a finite gradient."""

    #: Skipped steps in a row after which the last good state comes back: fewer happen by chance.
    patience: int = 5
    #: Returns after which a training is given up; the rate is then 1/32 of what it was.
    restores: int = 5
    #: Factor on the learning rate at each return.
    factor: float = 0.5
    #: Good steps between two states to go back to, at least: a copy costs about a step.
    snapshot_every: int = 100


@dataclass(frozen=True)
class RetreatRecipe:
    """Numbers by which a bound that has fallen for good is distinguished from noise."""

    #: Nats below the best block, at least.
    fall: float = 1.0
    #: Ranges of the losses of the best block, at least.
    ranges: float = 2.0
    #: Steps in a row that it lies so low.
    low_steps: int = 200
    #: Returns to the best state, at most.
    most: int = 5


@dataclass(frozen=True)
class ConvergenceRecipe:
    """Numbers of the test for a flat bound, and of the forecast of more steps."""

    #: Steps in a block, whose mean is one number of the test.
    block: int = 50
    #: Blocks on each side of the comparison.
    window: int = 4
    #: Nats of rise that are not worth more steps.
    tolerance: float = 0.01
    #: Steps before which nothing is flat.
    min_steps: int = 400
    #: Steps up to which the test is made after each block.
    early: int = 1000
    #: Blocks between two tests later on: a test costs as much as many steps.
    later_blocks: int = 4
    #: Nats from which on a bound says nothing: its square may not be finite.
    huge: float = 1e100
    #: Median absolute deviations beyond which a loss is drawn in: far, since a start may be steep.
    far: float = 100.0
    #: Blocks through which a forecast lays its line, at least.
    fewest_blocks: int = 4
    #: Nats that a forecast calls next to nothing.
    negligible: float = 0.05

    @property
    def span(self) -> int:
        """Steps on each side of the comparison."""
        return self.block * self.window


@dataclass(frozen=True)
class LearningRateRecipe:
    """Numbers of the learning rate's schedule."""

    #: Steps of the linear warm-up.
    warm_up: int = 50
    #: Rate at the end, relative to the constant phase.
    end: float = 0.01
    #: Steps of a decay, at least, where so many are left.
    shortest_decay: int = 200
    #: Share of the time after which the decay begins at the latest.
    latest_share: float = 0.6
    #: Adam's rate for few latents.
    adam: float = 1e-2
    #: The least for many.
    least_adam: float = 2e-3
    #: Latents from which on Adam's rate goes down, with the square root of their number.
    adam_dim: int = 20


@dataclass(frozen=True)
class MaximumLikelihoodRecipe:
    """Numbers of the fit of a density to data."""

    #: Steps between two looks at the validation set, at least; an epoch where that is longer.
    look_every: int = 50
    #: Rows of a validation batch, at least.
    valid_rows: int = 1000
    #: Factor on the learning rate where validation no longer improves.
    decay: float = 0.3
    #: Times that the rate falls before the fit ends: to 3 %.
    decays: int = 3
    #: Rows from which normalising layers are initialised, at most.
    init_rows: int = 10_000


RECOVERY = RecoveryRecipe()
MAXIMUM_LIKELIHOOD = MaximumLikelihoodRecipe()
RETREAT = RetreatRecipe()
CONVERGENCE = ConvergenceRecipe()
LEARNING_RATE = LearningRateRecipe()
