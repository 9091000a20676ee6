"""``NFVI``: the fit that takes care of itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import config_enumerate

from pyro_nfvi.errors import DivergedError, ModelError, NFVIError, OptionError
from pyro_nfvi.gaussian import GaussianFit
from pyro_nfvi.guides import AutoFlow
from pyro_nfvi.guides.start import prior_trace
from pyro_nfvi.infer.checkpoint import Checkpoint
from pyro_nfvi.infer.draws import weigh
from pyro_nfvi.infer.engines import ENGINES, choose
from pyro_nfvi.infer.fit import Fit, Training
from pyro_nfvi.infer.guide_spec import GuideSpec, check_guide, flow_name, make_guide
from pyro_nfvi.infer.keep import keep_better
from pyro_nfvi.infer.loop import Loop
from pyro_nfvi.infer.optim import OptimSpec, check_optim, make_optimizer
from pyro_nfvi.infer.precondition import gaussian_stage
from pyro_nfvi.infer.progress import StepInfo
from pyro_nfvi.infer.runaway import blame_runaway, check_proper
from pyro_nfvi.infer.schedule import Schedule, default_rate
from pyro_nfvi.infer.scope import own_params, own_random_state, random_seed
from pyro_nfvi.infer.step import EagerStep
from pyro_nfvi.infer.stopping import StopReason
from pyro_nfvi.logjoint import LogJoint
from pyro_nfvi.objectives import Objective, make_objective

__all__ = ["NFVI"]

#: Draws on which a fit is judged; fewer where one run of the model is very large, or where every
#: draw takes a run of its own.
_DRAWS, _LOOP_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2000, 500, 200, 300_000_000
#: Fits of fewer steps than this take a shorter Gaussian stage.
_WHOLE = 1000


class NFVI:
    r"""Normalizing-flow variational inference: fits a flow guide to a Pyro model.

    A Gaussian is fitted first, from several starts, in a few hundred steps that need no tuning
    (:func:`pyro_nfvi.gaussian.fit_gaussian`); the flow starts as the identity inside it and
    learns what a Gaussian cannot be. It trains with many particles at once, Adam with clipped
    gradients, a warm-up, a constant phase that ends when the smoothed bound stops rising, and a
    cosine down to 1 % of the rate.
    A step whose gradient is not finite is skipped; after five in a row an earlier state comes
    back at half the rate. Ctrl-C ends training and returns the best fit so far. Discrete sites
    that can be enumerated are summed out.

    Nothing of the process changes: random state, param store, validation and default dtype are
    as before. The parameters of the model's own modules are trained in place; ``pyro.param``
    values come back in ``fit.params``.

    Args:
        model: The Pyro model.
        guide: A flow's name or formula (:func:`pyro_nfvi.flows.make_flow`), ``"auto"``, a
            :class:`Flow`, a callable from the model to an :class:`AutoFlow` (such as
            ``AutoPlanar``), or an ``AutoFlow``, which is trained in place.
        objective: ``"path"`` (the ELBO with its path gradient), ``"total"``, or an objective.
        optim: None (Adam), a learning rate, a callable from parameters to a torch optimiser, or
            one of ``pyro.optim``. The schedule multiplies its rate.
        num_particles: Draws in each step.
        max_steps: Most steps.
        max_seconds: Most seconds of training, or None. With a limit, a fit is repeatable only as
            far as the machine's speed is.
        precondition: Whether a Gaussian is fitted first, for the flow to start from. An
            ``AutoFlow`` that was trained before, or has an outer flow or a base of your own, is
            left where it is.
        stop: Whether to stop when the bound is flat; False takes exactly ``max_steps``.
        engine: What runs the steps: ``"auto"``, which falls back by itself and says why
            (``fit.engine``, ``fit.engine_reason``), or one by name: ``"native"``,
            ``"inductor"``, ``"graph"``, ``"svi"`` (ordinary PyTorch).
        seed: Same seed, same result; None draws one.
        progress: Show a bar with bound and rate.
        callbacks: Called with a :class:`StepInfo` after each step; one that returns True stops
            the fit.
        checkpoint: File for the state of the fit, written every ``checkpoint_every`` steps.
        checkpoint_every: Steps between two writes.
        resume: Go on from ``checkpoint`` if the file is there, with the same numbers as if the
            fit had not been cut off.

    Raises:
        OptionError: An option that cannot be used, before any work is done.

    Source: the recipe of Agrawal, Sheldon & Domke 2020, arXiv:2006.10343, with the schedule of
    docs/architecture.md.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> fit = NFVI(model, guide="affine", seed=0, progress=False).run(y)
        >>> abs(fit.summary()["mu"].mean - 2.0) < 0.1, fit.why_stopped
        (True, 'converged')
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: GuideSpec = "auto",
        objective: str | Objective | None = "path",
        optim: OptimSpec = None,
        *,
        num_particles: int = 64,
        max_steps: int = 3000,
        max_seconds: float | None = None,
        stop: bool = True,
        precondition: bool = True,
        engine: str = "auto",
        seed: int | None = None,
        progress: bool = True,
        callbacks: Sequence[Callable[[StepInfo], Any]] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> None:
        if not callable(model):
            raise OptionError(f"NFVI needs a Pyro model to call; got {type(model).__name__}.")
        check_guide(guide)
        check_optim(optim)
        for name, value in (
            ("num_particles", num_particles),
            ("checkpoint_every", checkpoint_every),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} is a whole number of at least 1; got {value!r}.")
        if engine not in ENGINES:
            raise OptionError(f"engine is one of {', '.join(ENGINES)}; got {engine!r}.")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise OptionError(f"seed is a whole number or None; got {seed!r}.")
        if callable(callbacks) or not all(callable(callback) for callback in callbacks):
            raise OptionError("callbacks is a sequence of callables, such as [my_callback].")
        if resume and checkpoint is None:
            raise OptionError("resume=True needs checkpoint=path.")
        Schedule(max_steps, early=stop, max_seconds=max_seconds)  # checks its own options
        self.model, self.guide, self.optim = model, guide, optim
        self.objective = make_objective("path" if objective is None else objective)
        self.num_particles, self.max_steps = num_particles, max_steps
        self.max_seconds, self.stop, self.seed = max_seconds, stop, seed
        self.engine = engine
        self.precondition = precondition
        self.progress, self.callbacks = progress, tuple(callbacks)
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.resume = resume

    def run(self, *args: Any, **kwargs: Any) -> Fit:
        """Fit the model with these arguments.

        Returns:
            The fit, after Ctrl-C too.

        Raises:
            ModelError: The model cannot be fitted; the message names the site and the cure.
            DivergedError: Gradients were not finite again and again; the error's ``fit`` is the
                best one until then.
        """
        begin = time.monotonic()
        seed = random_seed() if self.seed is None else self.seed
        with own_random_state(seed), ExitStack() as stack:
            with _explained():
                names = stack.enter_context(own_params(self.model, args, kwargs))
                # The store's set-up ran the model; start from the seed whatever that drew.
                torch.random.default_generator.manual_seed(seed)
                model = _enumerated(self.model, args, kwargs)
            guide = make_guide(self.guide, model, "whitened" if self.precondition else "diagonal")
            fresh = not guide.is_set_up
            guide.setup(*args, **kwargs)
            log_joint = LogJoint(model, args, kwargs, guide.latent)
            gaussian = self._precondition(guide, log_joint, seed) if fresh else None
            loop = self._make_loop(guide, log_joint, seed, travels=gaussian is None)
            if gaussian is not None:
                loop.state.notes.append(
                    f"started at the best Gaussian of {len(gaussian.starts)} starts: ELBO "
                    f"{gaussian.bound:.2f} ± {gaussian.bound_se:.2f} nats, condition number of "
                    f"its correlations {gaussian.condition:.3g}"
                )
            started = time.monotonic()
            try:
                reason = loop.run()
            except DivergedError as error:
                saved = self._salvage(loop, names, seed, begin, started)
                raise blame_runaway(error, saved) from error
            return check_proper(self._finish(loop, reason, names, seed, begin, started))

    def _precondition(self, guide: AutoFlow, log_joint: LogJoint, seed: int) -> GaussianFit | None:
        """Move a guide that was just built to the best Gaussian; None where that was not done."""
        if not self.precondition or guide._outer_kind == "flow" or guide._base is not None:
            return None
        init_loc = guide.latent.init_loc
        generator = torch.Generator(init_loc.device).manual_seed(seed + 3)
        effort = min(1.0, self.max_steps / _WHOLE)
        found = gaussian_stage(log_joint, init_loc, effort=effort, generator=generator)
        if found is not None:
            guide.start_at(found.loc, found.factor)
        return found

    def _make_loop(self, guide: AutoFlow, log_joint: LogJoint, seed: int, *, travels: bool) -> Loop:
        own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
        outer = [p for name, p in own.items() if not name.startswith("flow.")]
        inner = [p for name, p in own.items() if name.startswith("flow.")]
        models = log_joint.parameters()
        params = [*inner, *outer, *models]
        rate = default_rate(guide.latent.dim)
        optimizer = make_optimizer(self.optim, [*inner, *models], outer, rate, travels=travels)
        step = EagerStep(guide, log_joint, self.objective, params, len(models), optimizer)
        engine = choose(self.engine, step, self.num_particles, self.max_steps)
        device = guide.latent.init_loc.device
        # Another base draws from torch's own state, which is the fit's for this time.
        standard = guide.density().base is None
        generator = torch.Generator(device).manual_seed(seed) if standard else None
        checkpoint = None
        if self.checkpoint is not None:
            identity = {
                "latent space": guide.latent.spec(),
                "guide": {name: list(p.shape) for name, p in guide.named_parameters()},
                "objective": self.objective.name,
                "num_particles": self.num_particles,
                "seed": self.seed,
            }
            checkpoint = Checkpoint(self.checkpoint, self.checkpoint_every, self.resume, identity)
        return Loop(
            engine,
            guide,
            log_joint,
            params,
            optimizer,
            Schedule(self.max_steps, early=self.stop, max_seconds=self.max_seconds),
            num_particles=self.num_particles,
            generator=generator,
            stop=self.stop,
            callbacks=self.callbacks,
            checkpoint=checkpoint,
            show=self.progress,
        )

    def _finish(
        self,
        loop: Loop,
        reason: StopReason,
        names: frozenset[str],
        seed: int,
        begin: float,
        started: float,
    ) -> Fit:
        """Keep the better of the last and the best state, judge it, and wrap it up."""
        trained = time.monotonic()
        guide, log_joint, state = loop.guide, loop.log_joint, loop.state
        notes = list(state.notes)
        if not keep_better(loop, seed):
            notes.append("the state of an earlier step was better than the last one and is kept")
        if state.num_skipped:
            notes.append(f"{state.num_skipped} steps were skipped: gradients were not finite")
        if state.num_bad:
            notes.append(f"{state.num_bad} particles were left out: not finite")
        most = _LOOP_DRAWS if log_joint.how == "loop" else _DRAWS
        count = max(_FEWEST_DRAWS, min(most, _NUMBERS // max(1, log_joint.size)))
        generator = None
        if loop.generator is not None:
            generator = torch.Generator(loop.generator.device).manual_seed(seed + 1)
        with torch.no_grad():
            draws = weigh(guide.density(), log_joint, count, generator)
        end = time.monotonic()
        store = pyro.get_param_store()
        held = store.get_state()
        timing = {
            "setup": started - begin,
            "fit": trained - started,
            "evaluate": end - trained,
            "total": end - begin,
            "steps_per_s": state.step / max(1e-9, trained - started),
            "capture": loop.engine.seconds.get("capture", 0.0),
            "compile": loop.engine.seconds.get("compile", 0.0),
            "step": (trained - started) / max(1, state.step),
        }
        settings = {
            "flow": flow_name(guide),
            "objective": self.objective.name,
            "num_particles": self.num_particles,
            "max_steps": self.max_steps,
            "seed": seed,
            "particles_by": log_joint.how,
            "particles_why": log_joint.why,
        }
        training = Training(
            torch.tensor(state.losses, dtype=torch.float64),
            reason,
            loop.engine.name,
            loop.engine.reason,
            timing,
            settings,
            tuple(notes),
        )
        return Fit(
            guide,
            draws,
            training,
            {name: store[name].detach().clone() for name in sorted(names)},
            log_joint,
            {
                "params": {name: held["params"][name] for name in names},
                "constraints": {name: held["constraints"][name] for name in names},
            },
        )

    def _salvage(
        self, loop: Loop, names: frozenset[str], seed: int, begin: float, started: float
    ) -> Fit | None:
        """The best fit of a run that diverged, if it took any good step."""
        if loop.state.num_skipped == loop.state.step:
            return None
        reason = StopReason("diverged", f"Gave up after {loop.state.step} steps.")
        return self._finish(loop, reason, names, seed, begin, started)


@contextmanager
def _explained() -> Iterator[None]:
    """Say of an error in the first run of the model that it is one."""
    try:
        yield
    except NFVIError:
        raise
    except Exception as error:
        raise ModelError(
            f"The model could not be run with the arguments of run(): {type(error).__name__}: "
            f"{error}. Pass the model's own arguments, as in model(*args, **kwargs)."
        ) from error


def _enumerated(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """Mark the model's discrete sites for enumeration, where the user has not."""
    trace = prior_trace(model, args, kwargs)
    unmarked = any(
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and "enumerate" not in site["infer"]
        for site in trace.nodes.values()
    )
    return config_enumerate(model) if unmarked else model
