"""``guide="auto"``: a Gaussian, or one on each mode, and flows inside for as long as they gain."""

from __future__ import annotations

from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._checks.moments import MOMENT_ROWS
from pyro_nfvi.infer._checks.tails import TAIL_ROWS, follow_tails, short_tails
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._run import FitRun
from pyro_nfvi.infer._stages.continued_training import train_longer
from pyro_nfvi.infer._stages.flow_growth import (
    Rung,
    add_flows,
    gaussian_fit,
    good_enough,
    rung_of,
    rungs,
    told,
)
from pyro_nfvi.infer._stages.multimodal import fit_modes

#: Share of the time for training that one look at tails may take.
_LOOK = 0.25


def climb(run: FitRun) -> Fit:
    """Fit a Gaussian; put a flow inside it, more layers in front; train that with more particles.

    Where the Gaussian stage came upon several modes, that is done for each of them, and the
    result is their mixture (:func:`fit_modes`), unless its bound is lower.
    """
    guide = AutoFlow(run.model, None, outer="whitened")
    log_joint = run.set_up(guide)
    gaussian = run.precondition(guide, log_joint)
    notes = run.notes
    best: Fit | None = None
    tried: list[Rung] = []
    # With parameters of the model that are not at rest the Gaussian cannot stand for a fit.
    settled = not log_joint.parameters() or (
        run.param_start is not None and run.param_start.converged
    )
    if gaussian is not None and settled:
        best = gaussian_fit(run, guide, log_joint, gaussian, notes)
        tried.append(rung_of("", best, run.time.whole.spent(), kept=True))
        if run.modes is not None and len(run.modes) > 1:
            run.hold_params = True  # each mode would train them its own way
            mixture = fit_modes(run, log_joint, best, run.modes, tried)
            run.hold_params = False
            if mixture is not None:
                return run.complete(mixture)

    # Beyond the 95 % quantile a power law is out of a Gaussian's reach, and costs it few nats.
    tails = None
    if best is not None and run.time.affords(TAIL_ROWS[log_joint.how], of=run.time.training):
        tails = follow_tails(best.latent, log_joint, best.draws, run.time.training.part(_LOOK))
    heavy = tails is not None and bool(tails.indices)

    def enough(fit: Fit) -> bool:
        """Tell whether it is good: its own draws do not show that a guide is too narrow."""
        reaches = not heavy or bool(fit.training.settings["flow"])
        if not (reaches and good_enough(fit)) or run.leaves_out(fit):
            return False
        without = () if tails is None else tails.without_variance
        # Where there is no time to look, there is none to mend anything either.
        time = run.time.training
        if run.time.affords(TAIL_ROWS[log_joint.how], of=time):
            some = time.part(_LOOK)
            if short_tails(fit.latent, log_joint, fit.draws, without, some).names:
                return False
        if not run.time.affords(MOMENT_ROWS[log_joint.how], of=time):
            return True
        moved = run.moments(fit, tails, time.part(_LOOK))
        return moved is None or not moved.names

    best, more = add_flows(
        run,
        log_joint,
        guide,
        best,
        travels=gaussian is None,
        notes=notes,
        max_steps=run.options.max_steps,
        enough=enough,
        tail=heavy,
    )
    left = run.options.max_steps + run.options.more_steps - sum(rung.steps for rung in more)
    last = 1 + len(rungs(guide.latent.dim))
    best = train_longer(
        run, log_joint, best, more, notes, max_steps=left, stage=last, enough=enough
    )
    return run.complete(told(best, [*tried, *more], notes, run.time.whole.spent()))
