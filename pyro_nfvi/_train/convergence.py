"""Looks at a training's bound now and then: the best block, a fall, and a flat bound."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pyro_nfvi._optim.early_stopping import Plateau
from pyro_nfvi._optim.learning_curve import Forecast, forecast
from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe
from pyro_nfvi._train.minibatch_convergence import PairedPlateau
from pyro_nfvi._train.training_state import TrainingState


@dataclass(frozen=True)
class Outcome:
    """The outcome of a look at the bound.

    Attributes:
        average: The present state belongs into the average.
        best: The last block is the best one: keep the present state.
        fall: Nats by which the bound has fallen for good: go back to the best state. None else.
        flat: The bound is flat: end the constant phase.
    """

    average: bool = False
    best: bool = False
    fall: float | None = None
    flat: bool = False


@dataclass(frozen=True)
class ConvergenceTest:
    """The looks at the bound of a training, and their meaning.

    Attributes:
        stop: End the constant phase where the bound is flat.
        average: The states of the decay are averaged.
        changing: Steps of this training in which the objective changes.
        recipe: Numbers of the test for a flat bound.
        plateau: The test.
        paired: The test on common mini-batches, in place of that; or None.
    """

    stop: bool
    average: bool
    changing: int
    recipe: ConvergenceRecipe
    plateau: Plateau
    paired: PairedPlateau | None = None

    @classmethod
    def of(
        cls,
        *,
        stop: bool = True,
        average: bool = False,
        changing: int = 0,
        recipe: ConvergenceRecipe = CONVERGENCE,
        paired: PairedPlateau | None = None,
    ) -> ConvergenceTest:
        """Return a test that has seen nothing yet."""
        return cls(stop, average, changing, recipe, Plateau(recipe), paired)

    @property
    def rise(self) -> float:
        """The last rise of the bound that was measured, in nats; NaN if none was."""
        return self.plateau.rise if self.paired is None else self.paired.rise

    def ahead(self, step: int) -> int:
        """Return how many steps there are until the next look, after ``step``."""
        span = self.plateau.span(step + 1, often=self.average)
        return span - step % span

    def look(self, state: TrainingState) -> Outcome:
        """Say what the last steps mean; the best block is brought up to date."""
        step, schedule, best_block = state.history.step, state.schedule, state.best_block
        span = self.plateau.span(step, often=self.average)
        if step % span and step != schedule.last:
            return Outcome()
        average = self.average and schedule.decay is not None
        # A bound that rose because the objective changed says nothing of what more steps bring.
        judged = 2 * self.recipe.span
        settled = self.changing <= 0 or step >= self.changing + judged
        # What is left at the end may be a few steps: too few to judge a state by.
        count = max(self.recipe.block, step % span or span)
        best, fall = _best_or_fallen(state, count, settled=settled)
        # Nor does one that fell, or the way from there back up.
        back = max(best_block.retreats, default=-judged)
        known = settled and not best_block.low_steps and step >= back + judged
        early = known and self.stop and schedule.decay is None
        flat = early and self._flat(state)
        return Outcome(average, best, fall, flat)

    def _flat(self, state: TrainingState) -> bool:
        """Tell whether the bound is flat; what a paired test has seen is part of the state."""
        if self.paired is None:
            return self.plateau.flat(state.history.losses)
        self.paired.looks = state.history.looks
        flat = self.paired.flat(state.history.step)
        state.history.looks = self.paired.looks
        return flat

    def forecast(self, state: TrainingState) -> Forecast | None:
        """Return what more steps would bring; None while the rate is constant."""
        if state.schedule.decay is None:
            return None
        # Before the target is cold, the bound rises for another reason; after a retreat it is
        # as if the fit began there.
        begin = max(0, self.changing, *state.best_block.retreats)
        return forecast(state.history.losses[begin : state.schedule.decay[0]], self.recipe)


def _best_or_fallen(
    state: TrainingState, count: int, *, settled: bool
) -> tuple[bool, float | None]:
    """Tell whether the last steps are the best block, else by how much the bound fell for good.

    Args:
        state: The state, whose best block is brought up to date.
        count: Steps since the last look.
        settled: The objective no longer changes.
    """
    best_block = state.best_block
    recent = list(filter(math.isfinite, state.history.losses[-count:]))
    if 2 * len(recent) < count:
        return False, None
    if best_block.improve(recent):
        return True, None
    fall = best_block.fallen(-statistics.median(recent), count) if settled else None
    if fall is not None:
        best_block.retreated(state.history.step)
    return False, fall
