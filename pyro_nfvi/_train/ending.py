"""The reason why a fit stopped, in a sentence, with a forecast of more steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_nfvi._optim.learning_curve import Forecast
from pyro_nfvi._optim.recipe import CONVERGENCE, ConvergenceRecipe
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.left_out_particles import LeftOut
from pyro_nfvi.diagnostics._finding import Level


@dataclass(frozen=True)
class Ending:
    """The end of a training, in numbers.

    Attributes:
        steps: Steps taken.
        max_steps: Most steps.
        seconds: Time taken.
        limit: Most time of this training, or None.
        whole_limit: Most time of the whole call, or None.
        converged: The bound was flat.
        decay_step: Step at which the learning rate began to go down; None if it did not.
        rise: Last rise of the bound that was measured, in nats; NaN if none was.
        early: A flat bound would have ended the training.
        forecast: What more steps would bring; None where too few were taken.
        left_out: Particles that the last steps left out; None for none.
        recipe: Numbers of the test for a flat bound.
        paired: The test was one on common mini-batches.
    """

    steps: int
    max_steps: int
    seconds: float
    limit: float | None = None
    whole_limit: float | None = None
    converged: bool = False
    decay_step: int | None = None
    rise: float = math.nan
    early: bool = True
    forecast: Forecast | None = None
    left_out: LeftOut | None = None
    recipe: ConvergenceRecipe = CONVERGENCE
    paired: bool = False


def broken_off(word: str, steps: int) -> StopReason:
    """Return the reason of a training that the user ended: ``interrupted`` or ``callback``."""
    if word == "interrupted":
        detail = f"Interrupted after {steps} steps; the best state until then is kept."
        return StopReason(word, detail)
    return StopReason(word, f"A callback stopped the fit after {steps} steps.")


def reason_of(end: Ending) -> StopReason:
    """Return the reason of a training that ended by itself.

    Example:
        >>> reason_of(Ending(steps=100, max_steps=100, seconds=1.0)).detail
        'All 100 steps were taken.'
    """
    steps = f"after {end.steps} steps"
    if end.left_out is not None and end.left_out.level is Level.FAULT:
        return stuck(end.left_out, end.steps)
    more = "" if end.forecast is None else f" {end.forecast}."
    gains = end.forecast is not None and end.forecast.significant
    if end.limit is not None and end.seconds >= end.limit:
        limit = end.whole_limit or end.limit
        return StopReason("max_seconds", f"The time of {limit:g} s was over {steps}.{more}", gains)
    if end.converged:
        begin = end.steps if end.decay_step is None else end.decay_step
        # A fit that was resumed after it had ended has not tested it itself.
        change = "hardly" if math.isnan(end.rise) else f"by {end.rise:+.3g} nats"
        rule = f"it rose by no more than {end.recipe.tolerance:g} or its standard error"
        if end.paired:
            rule = (
                f"on common mini-batches it rose by less than {end.recipe.tolerance:g}, standard "
                "errors included"
            )
        return StopReason(
            "converged",
            f"The bound changed {change} over the {end.recipe.span} steps before step {begin}: "
            f"{rule}. The learning rate then went down, to 1 % {steps}.{more}",
        )
    rising = end.early and end.rise > 0
    still = f"; the bound was still rising, by {end.rise:.3g} nats in 200 steps" if rising else ""
    return StopReason(
        "max_steps", f"All {end.max_steps} steps were taken{still}.{more}", rising or gains
    )


def stuck(left: LeftOut, steps: int) -> StopReason:
    """Return the reason of a training that ended among particles that cannot be used."""
    return StopReason("not_finite", f"Stuck after {steps} steps: {left.sentence()}.")


def gave_up(step: int, where: str, restores: int) -> str:
    """Return the message of a training that steps without a finite gradient ended.

    Args:
        step: Steps taken.
        where: The place of the first number that is not finite, as a clause.
        restores: How often the training went back to an earlier state.
    """
    return (
        f"The fit gave up at step {step}: {where}. It went back to an earlier state "
        f"{restores} times, each time at half the learning rate. Look "
        "at that site's distribution (a scale that can reach 0, a log of a small number); "
        "use float64; or start closer: AutoFlow(model, init_loc_fn=..., init_scale=0.01), "
        "NFVI(..., optim=1e-3). The best fit until then is this error's .fit."
    )
