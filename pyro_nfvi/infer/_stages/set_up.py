"""Set-up: the latent space of the model, its log joint, and the pace of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.density_selection import DensityEngine, choose_density
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._checks.pyro_density import check_by_pyro
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._target import Direct, Target
from pyro_nfvi.infer._time_plan import TimePlan


def set_up(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    param_names: frozenset[str],
    seed: int,
    guide: AutoFlow | PyroGuide,
    options: Options,
    time: TimePlan,
) -> Problem:
    """Build a guide's parameters, and the log joint of its latent space; check and compile it.

    The log joint is compared with Pyro's own trace, and its compiled form with the log joint.

    Args:
        model: The model, with discrete sites marked.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        param_names: Its ``pyro.param`` names.
        seed: Seed of all noise.
        guide: The guide.
        options: Options of the fit.
        time: Clock of the call; the pace of the model is measured.

    Raises:
        ModelError: The model cannot be scored; the message names the site.
    """
    guide.setup(*args, **kwargs)
    log_joint = LogJoint(model, args, kwargs, guide.latent)
    opinion = check_by_pyro(log_joint, time.whole)
    unseen = "Pyro's own trace scored no point around the start"
    if isinstance(model, Target) and model.density.returns == "value_and_grad":
        density = DensityEngine("eager", "the target's own function is called", Direct(model))
    else:
        with options.progress.stage("compiling the model", 1, unit="engine") as tick:
            density = choose_density(
                options.engine, log_joint, options.max_steps, budget=time.whole, watch=time.watch
            )
            tick(1)
    log_joint.use(density.compiled)
    time.measure(log_joint)
    notes = () if opinion.draws else (unseen,)
    return Problem(log_joint, param_names, seed, notes, density)
