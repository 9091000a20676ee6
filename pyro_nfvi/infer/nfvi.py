"""``NFVI``: the fit that takes care of itself."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import config_enumerate

from pyro_nfvi.errors import DivergedError, ModelError, NFVIError, OptionError
from pyro_nfvi.flows import Flow
from pyro_nfvi.flows.factory import check_formula
from pyro_nfvi.guides import AutoFlow
from pyro_nfvi.guides.start import prior_trace
from pyro_nfvi.infer.checkpoint import Checkpoint
from pyro_nfvi.infer.draws import weigh
from pyro_nfvi.infer.engines import ENGINES, choose
from pyro_nfvi.infer.fit import Fit, Training
from pyro_nfvi.infer.loop import Loop
from pyro_nfvi.infer.optim import OptimSpec, check_optim, make_optimizer
from pyro_nfvi.infer.progress import StepInfo
from pyro_nfvi.infer.runaway import blame_runaway, check_proper
from pyro_nfvi.infer.schedule import Schedule, default_rate
from pyro_nfvi.infer.scope import own_params, own_random_state, random_seed
from pyro_nfvi.infer.snapshot import Snapshot
from pyro_nfvi.infer.step import EagerStep
from pyro_nfvi.infer.stopping import StopReason
from pyro_nfvi.logjoint import LogJoint
from pyro_nfvi.objectives import Objective, make_objective

__all__ = ["NFVI"]

#: What ``guide="auto"`` means.
AUTO = "iaf*2"
#: Draws on which a fit is judged; fewer where one run of the model is very large, or where every
#: draw takes a run of its own.
_DRAWS, _LOOP_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2000, 500, 200, 300_000_000
#: Draws on which the last state and the best one are compared.
_COMPARE = 512

GuideSpec = str | AutoFlow | Flow | Callable[[Callable[..., Any]], AutoFlow]


class NFVI:
    r"""Normalizing-flow variational inference: fits a flow guide to a Pyro model.

    Training runs with many particles at once, Adam with clipped gradients, a warm-up, a constant
    phase that ends when the smoothed bound stops rising, and a cosine down to 1 % of the rate.
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
        _check_guide(guide)
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
            guide = self._make_guide(model)
            guide.setup(*args, **kwargs)
            log_joint = LogJoint(model, args, kwargs, guide.latent)
            loop = self._make_loop(guide, log_joint, seed)
            started = time.monotonic()
            try:
                reason = loop.run()
            except DivergedError as error:
                saved = self._salvage(loop, names, seed, begin, started)
                raise blame_runaway(error, saved) from error
            return check_proper(self._finish(loop, reason, names, seed, begin, started))

    def _make_guide(self, model: Callable[..., Any]) -> AutoFlow:
        guide = self.guide
        if isinstance(guide, AutoFlow):
            return guide
        if isinstance(guide, str):
            return AutoFlow(model, AUTO if guide == "auto" else guide)
        if isinstance(guide, Flow):
            # A copy, so that each run starts from the flow that was passed.
            return AutoFlow(model, copy.deepcopy(guide))
        made = guide(model)
        if not isinstance(made, AutoFlow):
            raise OptionError(
                f"guide returned {type(made).__name__}; a callable guide takes the model and "
                "returns an AutoFlow, such as lambda model: AutoPlanar(model, num_flows=16). "
                "Other guides of Pyro train with pyro.infer.SVI."
            )
        return made

    def _make_loop(self, guide: AutoFlow, log_joint: LogJoint, seed: int) -> Loop:
        own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
        outer = [p for name, p in own.items() if not name.startswith("flow.")]
        inner = [p for name, p in own.items() if name.startswith("flow.")]
        models = log_joint.parameters()
        params = [*inner, *outer, *models]
        rate = default_rate(guide.latent.dim)
        optimizer = make_optimizer(self.optim, [*inner, *models], outer, rate)
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
        if not _keep_better(loop, seed):
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
            "flow": _flow_name(guide),
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


def _check_guide(guide: Any) -> None:
    """Refuse a guide that cannot work, before any work is done."""
    if isinstance(guide, str):
        if guide != "auto":
            check_formula(guide, {})
    elif not callable(guide):  # AutoFlow and Flow are callable too
        raise OptionError(
            "guide is a flow's name or formula such as 'iaf*2', 'auto', a Flow, a callable of the "
            f"model, or an AutoFlow; got {type(guide).__name__}."
        )
    elif isinstance(guide, pyro.infer.autoguide.AutoGuide) and not isinstance(guide, AutoFlow):
        raise OptionError(
            f"NFVI trains flow guides; {type(guide).__name__} trains with pyro.infer.SVI."
        )


def _flow_name(guide: AutoFlow) -> str:
    """What a report calls the guide's flow."""
    flow = None if guide._recipe is None else guide._recipe.flow
    return flow if isinstance(flow, str) else "" if flow is None else type(flow).__name__


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


def _keep_better(loop: Loop, seed: int) -> bool:
    """Leave the better of the last and the best state in place; say whether it is the last."""
    best, state = loop.best, loop.state
    if best is None or best.step == state.step:
        return True
    last = Snapshot.take(state.step, loop.params, loop.optimizer)
    generator = None
    if loop.generator is not None:
        generator = torch.Generator(loop.generator.device).manual_seed(seed + 2)
    eps = loop.guide.density().sample_base(_COMPARE, generator=generator)
    subsample = loop.log_joint.draw_subsample(generator)

    def log_w() -> torch.Tensor:
        with torch.no_grad():
            z, log_q = loop.guide.density().push(eps)
            found = loop.log_joint(z, subsample) - log_q
        return torch.where(torch.isfinite(found), found, torch.full_like(found, -1e10)).double()

    now = log_w()
    best.put_values(loop.params)
    rise = log_w() - now  # on the same noise, so that little of it is noise
    if rise.mean() > 2 * rise.std() / len(rise) ** 0.5:
        return False
    last.put_values(loop.params)
    return True
