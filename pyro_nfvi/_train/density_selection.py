"""Choice of what evaluates the log joint of a fit: compiled code, or the model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._pyro_model.batch_model import CHANGING, BatchModel
from pyro_nfvi._pyro_model.log_joint import LogJoint, LogJointBackend
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi._train.engine_faults import attempt
from pyro_nfvi._train.recipe import ENGINE
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import EngineWarning


@dataclass(frozen=True)
class DensityEngine:
    """Choice between compiled code and the model, for evaluations of the log joint.

    Attributes:
        backend: ``"native"``, ``"hybrid"`` (native, with operations left to PyTorch) or
            ``"eager"``, the model itself.
        reason: Why, in words.
        compiled: The compiled code; None where the model is evaluated.
    """

    backend: str
    reason: str
    compiled: LogJointBackend | None = None


#: What a fit says of a model that Python changes on the way.
_CHANGED = "the model changed after it was compiled, as Python's own state can"
EAGER = DensityEngine("eager", "asked for")


def choose_density(
    engine: str,
    log_joint: LogJoint,
    max_steps: int,
    *,
    budget: Budget = UNLIMITED,
    watch: Stopwatch | None = None,
) -> DensityEngine:
    """Compile the log joint where that works and is worth its time.

    Nothing that is measured decides: a fit gives the same numbers whether the compiled code was
    found or had to be made. What does not work leaves the model in its place.

    Args:
        engine: ``"auto"``, ``"compiled"`` or ``"eager"``.
        log_joint: The model's log joint, by the model itself.
        max_steps: Most steps of the fit, which say how often the log joint is evaluated before,
            between and after them.
        budget: Time of the call; with a limit, a compile takes a quarter of it at most.
        watch: Is credited with the times of capture, compile and comparison.
    """
    if engine == "eager":
        return EAGER
    if isinstance(log_joint.model, BatchModel) and log_joint.model.changing:
        return DensityEngine("eager", CHANGING)
    if engine == "auto" and max_steps < ENGINE.compile_steps:
        return DensityEngine(
            "eager",
            f"a fit of fewer than {ENGINE.compile_steps} steps evaluates it too few times",
        )
    timeout = math.inf if budget.limit is None else budget.left() / 4
    if budget.limit is not None and not _affords_capture(log_joint, budget, timeout):
        return DensityEngine("eager", "the time left is too short for a capture")
    try:
        with attempt("compiling the log joint"):
            from pyro_nfvi._engine.compiled_density import CompiledDensity

            found = CompiledDensity(log_joint, timeout=timeout, watch=watch)
    except Unsupported as error:
        # Pyro appends the shapes of the trace to what passes through it.
        return DensityEngine("eager", str(error).partition("\nTrace Shapes:")[0].rstrip())
    return DensityEngine(found.backend, "the log joint is compiled", found)


def _affords_capture(log_joint: LogJoint, budget: Budget, most: float) -> bool:
    """Time one run of the model, and tell whether its capture takes at most so many seconds."""
    begin = budget.clock()
    with torch.no_grad():
        log_joint(log_joint.latent.init_loc[None], log_joint.draw_subsample())
    return ENGINE.capture_runs * (budget.clock() - begin) < most


def drop_if_changed(log_joint: LogJoint) -> None:
    """Go back to the model where compiled code no longer gives its numbers.

    Cost:
        A run of the model with a few rows, and its gradient.
    """
    compiled = log_joint.compiled
    if compiled is None:
        return
    try:
        problem = compiled.difference()
    except Exception as error:  # it took these points once
        problem = f"{type(error).__name__} is raised"
    if problem is not None:
        log_joint.use(None)
        warn(
            f"The log joint is evaluated by the model from now on: {_CHANGED} ({problem}). If it "
            "is meant to change, say engine='eager'.",
            EngineWarning,
        )


def present(chosen: DensityEngine, log_joint: LogJoint) -> DensityEngine:
    """Return what evaluates a log joint now, given what was chosen."""
    if chosen.compiled is None or log_joint.compiled is not None:
        return chosen
    return DensityEngine("eager", _CHANGED)
