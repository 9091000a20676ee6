"""More particles, and steps, for a flow of ``guide="auto"`` that is not good enough yet."""

from __future__ import annotations

from collections.abc import Callable

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import DivergedError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._run import FitRun
from pyro_nfvi.infer._stages.flow_growth import (
    ENDS,
    FEWEST,
    Rung,
    gain,
    joined,
    rung_of,
    train_from,
)

#: Times as many particles. With them the bound rises where noise had hidden that it does: on six
#: posteriors that brought more than as many numbers in more steps of few particles.
_GROW = 4
#: Largest dimension: beyond, a step of so many particles takes tens of milliseconds.
_DIM = 100


def train_longer(
    run: FitRun,
    log_joint: LogJoint,
    best: Fit,
    tried: list[Rung],
    notes: list[str],
    *,
    max_steps: int,
    stage: int,
    enough: Callable[[Fit], bool],
) -> Fit:
    """Train a flow again from where it is, with four times the particles, unless it is good enough.

    What comes of it is kept where its bound is no lower. Not done for a Gaussian, for more than 100
    latents, for mini-batches, and for a model that runs for one particle at a time.

    Args:
        run: The call that this belongs to.
        log_joint: The model's log joint.
        best: The fit so far.
        tried: What was tried; a rung is added.
        notes: Lines for the report.
        max_steps: Most steps.
        stage: Number of the training, after which its checkpoint is named.
        enough: Whether a fit is good enough.

    Returns:
        The better fit.
    """
    formula = best.training.settings["flow"]
    dear = log_joint.how == "loop" or log_joint.subsampled or best.latent.dim > _DIM
    over = run.interrupted or best.why_stopped in ENDS or max_steps < FEWEST
    if not formula or dear or over or enough(best):
        return best
    if run.time.training.over():
        run.time.leave_out("more steps with more particles")
        return best
    begun, name = run.time.whole.spent(), f"{formula} with {_GROW} times the particles"
    try:
        fit = train_from(
            best.guide,
            formula,
            run,
            log_joint,
            travels=False,
            notes=[],
            max_steps=max_steps,
            stage=stage,
            grow=_GROW,
        )
    except KeyboardInterrupt:  # while the engine was built; training returns its fit
        notes.append(f"interrupted before {name} was trained")
        run.interrupted = True
        return best
    except DivergedError as error:
        notes.append(f"{name} diverged: {error}")
        return best
    kept = gain(fit, best, run.options.objective) > 0
    tried.append(rung_of(name, fit, run.time.whole.spent() - begun, kept=kept))
    return joined(best, fit) if kept else best
