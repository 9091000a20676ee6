"""Why a fit stopped, in a sentence, and what more steps would have brought."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_nfvi._train.convergence import Outlook, StopReason, outlook
from pyro_nfvi.infer._findings import LeftOut, Level

if TYPE_CHECKING:
    from pyro_nfvi._train.loop import Loop


def reason_of(loop: Loop, word: str) -> StopReason:
    """Say why a loop ended: ``word`` if something broke it off, else what its schedule says."""
    state, schedule, plateau = loop.state, loop.schedule, loop.plateau
    rise, steps = plateau.rise, f"after {state.step} steps"
    if word == "interrupted":
        return StopReason(word, f"Interrupted {steps}; the best state until then is kept.")
    if word == "callback":
        return StopReason(word, f"A callback stopped the fit {steps}.")
    left = loop.left_out()
    if left is not None and left.level is Level.FAULT:
        return stuck(left, state.step)
    limit, ahead = schedule.max_seconds, _outlook(loop)
    more = "" if ahead is None else f" {ahead}."
    gains = ahead is not None and ahead.significant
    if limit is not None and state.seconds >= limit:
        whole = loop.budget.limit or limit
        return StopReason("max_seconds", f"The time of {whole:g} s was over {steps}.{more}", gains)
    if state.converged:
        span = plateau.block * plateau.window
        begin = state.decay[0] if state.decay else state.step
        # A fit that was resumed after it had ended has not looked itself.
        change = "hardly" if rise != rise else f"by {rise:+.3g} nats"
        return StopReason(
            "converged",
            f"The bound changed {change} over the {span} steps before step {begin}: "
            f"it rose by no more than {plateau.tolerance:g} or its standard error. The "
            f"learning rate then went down, to 1 % {steps}.{more}",
        )
    rising = loop.stop and rise > 0
    still = f"; the bound was still rising, by {rise:.3g} nats in 200 steps" if rising else ""
    return StopReason(
        "max_steps",
        f"All {schedule.max_steps} steps were taken{still}.{more}",
        rising or gains,
    )


def stuck(left: LeftOut, steps: int) -> StopReason:
    """Say that a training ended among particles that cannot be used."""
    return StopReason("not_finite", f"Stuck after {steps} steps: {left.sentence()}.")


def _outlook(loop: Loop) -> Outlook | None:
    """Extrapolate the bound of the constant phase to more steps."""
    state = loop.state
    if state.decay is None:
        return None
    # Before the target is cold, the bound rises for another reason; after a retreat it is as if
    # the fit began there.
    begin = max(0, loop.objective.settled - loop.first, *state.retreats)
    return outlook(state.losses[begin : state.decay[0]], loop.plateau.block)
