"""``NFVI``: the fit that takes care of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._budget import Budget
from pyro_nfvi._engine.native.background import background
from pyro_nfvi._error_text import describe_error, place_of
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._pyro_model.initial_point_search import any_trace
from pyro_nfvi._pyro_model.latent_space import is_discrete, is_point_mass, no_latents
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._random import fresh_seed, seeded
from pyro_nfvi._train.engine_selection import ENGINES, check_engine
from pyro_nfvi._train.optimizer import OptimSpec, check_optim
from pyro_nfvi._train.progress import SILENT, Progress, StepInfo
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.errors import DivergedError, ModelError, NFVIError, OptionError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._batches import by_batches, enumerated, is_loader_call
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._fit_team import fit_team, lost_processes_told
from pyro_nfvi.infer._guide_spec import (
    GuideSpec,
    check_guide,
    made_guide,
    make_guide,
    make_plate_guide,
)
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._received_fit import received
from pyro_nfvi.infer._recipe import FLOW_GROWTH
from pyro_nfvi.infer._scopes import own_params, own_random_state
from pyro_nfvi.infer._stages.examination import examine
from pyro_nfvi.infer._stages.model_selection import select_model
from pyro_nfvi.infer._stages.parameter_settling import settle_parameters
from pyro_nfvi.infer._stages.plate_stages import fit_plates, set_up_rows
from pyro_nfvi.infer._stages.set_up import set_up
from pyro_nfvi.infer._stages.training import TrainingPlan, train
from pyro_nfvi.infer._stages.warm_start import WarmStart, warm_start
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training
from pyro_nfvi.objectives._make_objective import ObjectiveLike, make_objective


class NFVI:
    r"""Normalizing-flow variational inference: fits a flow guide to a Pyro model.

    A Gaussian is fitted first, from several starts, in a few hundred steps that need no tuning;
    the flow starts as the identity inside it and
    learns what a Gaussian cannot be. It trains with many particles at once, Adam with clipped
    gradients, a warm-up, a constant phase that ends when the smoothed bound stops rising, and a
    cosine down to 1 % of the rate.
    A step whose gradient is not finite is skipped; after five in a row an earlier state comes
    back at half the rate. Ctrl-C ends training and returns the best fit so far. Discrete sites
    that can be enumerated are summed out.

    Nothing of the process changes: random state, param store, validation and default dtype are
    as before. The parameters of the model's own modules are trained in place; ``pyro.param``
    values come back in ``fit.params``.

    Under ``torchrun`` the processes share one fit: the first one makes it, and each evaluates a
    part of the particles. All get the fit, the first one writes files.

    Args:
        model: The Pyro model.
        guide: ``"auto"``: a Gaussian, a flow inside it, and more layers in front of that, for as
            long as they gain, within ``max_steps`` and ``max_seconds`` together (with
            ``stop=False`` or ``precondition=False``: two autoregressive layers). ``"gaussian"``:
            no flow, a start for :meth:`Fit.mcmc`. Or a flow's name or formula
            (:func:`pyro_nfvi.flows.make_flow`), a :class:`Flow`, a callable from the model to an
            :class:`AutoFlow` (such as ``AutoPlanar``), or an ``AutoFlow``, which is trained in
            place. Where latents stand in a plate that subsamples, or most of more than 1000 in
            plates with data, ``"auto"`` is an :class:`AutoPlateFlow`, and the report says why; one
            of your own, or a callable that returns one, is trained in its place.
        objective: ``"path"`` (the ELBO with its path gradient), ``"total"``, ``"dreg"``, ``"iw"``,
            ``"renyi"``, ``"tempered"``, or an :class:`~pyro_nfvi.objectives.Objective`.
            ``fit.losses`` holds its bound; ``fit.elbo`` is the ELBO whatever the objective.
        optim: None (Adam), a learning rate, a callable from parameters to a torch optimiser, or
            one of ``pyro.optim``. The schedule multiplies its rate.
        num_particles: Draws in each step.
        max_steps: Most steps. None: 3000, and with ``guide="auto"`` up to 3000 more, of four times
            the particles, where a fit in up to 100 latents is not good enough by then. A number
            is for both together.
        max_seconds: Seconds that the whole call may take, all stages together, or None. There is
            a result in any case: ``fit.report`` and the verdict, which is not "good" then, name
            what was left out for lack of time. Some ten runs of the model and a few dozen draws
            from the guide are not left out. With a limit, a fit is repeatable only as far as the
            machine's speed is.
        precondition: Fit a Gaussian first, for the flow to start from. An ``AutoFlow`` that was
            trained before, or has an outer flow or a base of your own, is left where it is.
        explore: Search for other modes after the first Gaussian: ``"starts"`` from draws of the
            prior and wide draws around the Gaussian, ``"off"`` not beyond the Gaussian's own
            starts. With ``guide="auto"`` several modes become a mixture
            (:class:`AutoMixture <pyro_nfvi.AutoMixture>`), each with half of ``max_steps``
            (3000 by default); for another guide the verdict names those that it misses. A mode that
            no ascent reaches is not found.
        stop: Stop when the bound is flat; False takes exactly ``max_steps``.
        engine: What runs the steps: ``"auto"`` compiles them where that works and pays, and says
            why in ``fit.engine_reason``; ``"compiled"`` raises an error with the reason where it
            does not work; ``"eager"`` is ordinary PyTorch.
        seed: Same seed, same result; None draws one.
        progress: Show a bar with bound and rate.
        callbacks: Called with a :class:`StepInfo` after each step of training (the Gaussian stage
            before it has none); one that returns True stops the fit.
        checkpoint: File for the state of the fit, written every ``checkpoint_every`` steps.
        checkpoint_every: Steps between two writes.
        resume: Go on from ``checkpoint`` if the file is there, with the same numbers as if the
            fit had not been cut off.

    Raises:
        OptionError: An option that cannot be used, before any work is done.

    Source: the recipe of Agrawal, Sheldon & Domke 2020, arXiv:2006.10343, with the schedule of
    docs/method.md.

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
        objective: ObjectiveLike | None = "path",
        optim: OptimSpec = None,
        *,
        num_particles: int = 64,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        stop: bool = True,
        precondition: bool = True,
        explore: str = "starts",
        engine: str = "auto",
        seed: int | None = None,
        progress: bool = True,
        callbacks: Sequence[Callable[[StepInfo], Any]] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> None:
        check_model("NFVI", model)
        check_guide(guide)
        check_optim(optim)
        num_particles = whole("num_particles", num_particles)
        checkpoint_every = whole("checkpoint_every", checkpoint_every)
        if explore not in ("starts", "off"):
            raise OptionError(f"explore is 'starts' or 'off'; got {explore!r}.")
        if engine not in ENGINES:
            raise OptionError(f"engine is one of {', '.join(ENGINES)}; got {engine!r}.")
        seed = seed_number(seed)
        if callable(callbacks) or not all(callable(callback) for callback in callbacks):
            raise OptionError("callbacks is a sequence of callables, such as [my_callback].")
        if resume and checkpoint is None:
            raise OptionError("resume=True needs checkpoint=path.")
        #: Steps that ``guide="auto"`` may add with more particles.
        most = FLOW_GROWTH.max_steps
        self.more_steps = most if max_steps is None else 0
        max_steps = most if max_steps is None else max_steps
        Schedule(max_steps, early=stop)  # checks its own options
        Budget.start(max_seconds)
        self.model, self.guide, self.optim = model, guide, optim
        self.objective = make_objective("path" if objective is None else objective)
        self.objective.check(num_particles)
        # The first candidate leaves a third of the steps to the next.
        share = 2 * max_steps // 3 if isinstance(guide, str) and guide == "auto" else max_steps
        if self.objective.settled > Schedule(max(1, share), early=stop).latest:
            raise OptionError(
                f"The objective {self.objective.name} is the bound only from step "
                f"{self.objective.settled} on, and training would end there or before: raise "
                f"max_steps (now {max_steps}) to {3 * self.objective.settled} or more, or take a "
                "shorter schedule, such as TemperedELBO(Tempered(steps=500))."
            )
        self.num_particles, self.max_steps = num_particles, max_steps
        self.max_seconds, self.stop, self.seed = max_seconds, stop, seed
        self.engine = engine
        self.precondition, self.explore = precondition, explore
        self.progress, self.callbacks = progress, tuple(callbacks)
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.resume = resume

    @full_precision
    def run(self, *args: Any, **kwargs: Any) -> Fit | PlateFit:
        """Fit the model with these arguments; outside of autocast, which a fit does not survive.

        ``run(loader, num_data=N)`` fits a model of mini-batches, ``model(*batch)`` with
        ``pyro.plate(name, N, subsample_size=len(batch))`` or ``subsample=index`` of the batch. The
        loader is any iterable of batches or a function that makes one: a ``DataLoader`` over a
        map-style data set, whose item i is row i and of which nothing is copied; others are read
        once, into a temporary file where they are large. Rows are drawn by the seed of the fit,
        whatever the order of the loader. Further arguments go to the model after those of the
        batch; a model with an argument ``num_data`` gets that too.

        Returns:
            The fit, after Ctrl-C too. Of a guide of globals and rows a
            :class:`~pyro_nfvi.infer._plate_fit.PlateFit`.

        Raises:
            ModelError: The model cannot be fitted; the message names the site and the cure.
            OptionError: A loader has fewer rows or more than ``num_data``.
            FileError: There is no space for the rows of a loader.
            DivergedError: Gradients were not finite again and again; the error's ``fit`` is the
                best one until then.
        """
        return self._run(Budget.start(self.max_seconds), args, kwargs)

    def _run(self, budget: Budget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fit | PlateFit:
        time = TimePlan(budget)
        try:
            with lost_processes_told():
                fit = self._fitted(time, args, kwargs)
        except DivergedError as error:
            if isinstance(error.fit, (Fit, PlateFit)):
                error.fit = replace(error.fit, training=_timed(error.fit.training, time))
            raise
        if isinstance(fit, bytes):
            return received(fit, self.model, self.guide, args, kwargs)
        fit = replace(fit, training=_timed(fit.training, time))
        fit.guide.param_guard = fit._params.guard()
        return fit

    def _fitted(
        self, time: TimePlan, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Fit | PlateFit | bytes:
        """Set the fit up and run its stages; return the file of the fit where another did that."""
        watch, options, team = time.watch, self._options(), fit_team()
        if team is not None:
            team.agree(self.seed, args, kwargs)
            if not team.leads:
                options = replace(options, progress=SILENT)
        seed = fresh_seed() if self.seed is None else self.seed
        with own_random_state(seed, "fit"), ExitStack() as stack:
            with watch.part("set_up"), nullcontext() if team is None else team.together():
                with _explained(), seeded(seed, "set-up"):
                    model = self.model
                    if is_loader_call(args, kwargs):
                        model, args, kwargs = by_batches(model, args, kwargs)
                    names = stack.enter_context(own_params(model, args, kwargs))
                    trace = any_trace(model, args, kwargs)
                    model = _enumerated(model, trace)
                check_engine(self.engine)
                options = replace(options, guide=made_guide(options.guide, model))
                rows = make_plate_guide(options.guide, model, trace)
                call = (model, args, kwargs, names, seed)
                stages: Callable[[Problem], Fit | PlateFit]
                if rows is not None:
                    fresh = not rows.guide.is_set_up
                    problem = set_up_rows(*call, rows.guide, options, time)
                    stages = partial(
                        fit_plates, options=options, time=time, guide=rows.guide, fresh=fresh,
                        reason=rows.reason,
                    )  # fmt: skip
                else:
                    asked = None if options.automatic else options.guide
                    guide = make_guide(asked, model, options.outer)
                    fresh = not guide.is_set_up
                    problem = set_up(*call, guide, options, time)
                    stages = partial(
                        _fit_whole, options=options, time=time, guide=guide, fresh=fresh
                    )
            return stages(problem) if team is None else team.fit(problem, stages)

    def _options(self) -> Options:
        return Options(
            guide=self.guide,
            objective=self.objective,
            optim=self.optim,
            num_particles=self.num_particles,
            max_steps=self.max_steps,
            more_steps=self.more_steps,
            stop=self.stop,
            precondition=self.precondition,
            explore=self.explore,
            engine=self.engine,
            seed=self.seed,
            callbacks=self.callbacks,
            checkpoint=self.checkpoint,
            checkpoint_every=self.checkpoint_every,
            resume=self.resume,
            progress=Progress(self.progress),
        )


def _fit_whole(
    problem: Problem, options: Options, time: TimePlan, guide: AutoFlow, *, fresh: bool
) -> Fit:
    """Run the stages of a fit of all latents as one vector, one after the other.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: The guide, set up.
        fresh: True where it was not trained before.
    """
    with background():
        start = WarmStart(notes=problem.notes)
        if fresh:
            start = warm_start(problem, options, time, guide)
        if options.automatic:
            fit = select_model(problem, options, time, guide, start)
        else:
            plan = TrainingPlan.after(start, options.max_steps)
            fit = train(problem, options, time, guide, plan)
        with time.watch.part("parameters"):
            fit = settle_parameters(problem, options, time, fit)
        with time.watch.part("checks"):
            return examine(problem, options, time, start.search, fit)


def _timed(training: Training, time: TimePlan) -> Training:
    """Write into the record of a fit where the time of the call went."""
    return replace(training, timing=time.watch.read())


def _cure(words: str) -> str:
    """Say what to look at after an error of the model."""
    if "dtype" in words or "scalar type" in words:
        return (
            "Data made of NumPy arrays are float64: give them as x.float(), or call "
            "torch.set_default_dtype(torch.float64) before the model makes its numbers."
        )
    return "Pass the model's own arguments, as in model(*args, **kwargs), data as tensors."


@contextmanager
def _explained() -> Iterator[None]:
    """Say of an error in the first run of the model that it is one."""
    try:
        yield
    except NFVIError as error:
        if error.__cause__ is None:
            raise
        # The same exception at each of the points that were tried.
        cure = _cure(str(error.__cause__))
        raise ModelError(
            f"{error} If the arguments of run() are at fault: {cure}"
        ) from error.__cause__
    except Exception as error:
        words = str(error).partition("Trace Shapes:")[0].rstrip()  # which Pyro appends
        cure = _cure(words)
        what = describe_error(error)
        if words.strip():
            what = f"{type(error).__name__}{place_of(error)}: {words}".rstrip(".")
        raise ModelError(
            f"The model could not be run: {what}. Mend what it says. If the arguments of run() are "
            f"at fault: {cure}"
        ) from error


def _enumerated(model: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """Mark the model's discrete sites for enumeration, where the user has not."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    sites = [site for site in sites if not site_is_subsample(site)]
    sites = [site for site in sites if not is_point_mass(site)]
    if all(site["is_observed"] or is_discrete(site["fn"]) for site in sites):
        raise ModelError(no_latents(trace))
    unmarked = any(
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and "enumerate" not in site["infer"]
        for site in trace.nodes.values()
    )
    return enumerated(model) if unmarked else model
