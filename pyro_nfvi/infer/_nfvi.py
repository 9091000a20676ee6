"""``NFVI``: the fit that takes care of itself."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._budget import Budget
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._train.engine_names import ENGINES
from pyro_nfvi._train.optimizer import OptimSpec, check_optim
from pyro_nfvi._train.progress import Progress, StepInfo
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._guide_spec import GuideSpec, check_guide
from pyro_nfvi.infer._recipe import FLOW_GROWTH
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.objectives._make_objective import ObjectiveLike, make_objective

if TYPE_CHECKING:
    from pyro_nfvi.infer._fit import Fit
    from pyro_nfvi.infer._plate_fit import PlateFit


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
            place. Guides to compare with: ``"laplace"``, ``"pathfinder"`` (of several paths;
            ``"pathfinder*1"`` of one) and ``"dadvi"``, which are computed and take no steps; an
            ``AutoContinuous`` guide of Pyro's, ``AutoNormal``, an ``AutoGuideList`` of such, or
            their classes; a function, or module, that draws the latents by name. These train
            from where they start; all get the same checks. Where latents stand in a plate that
            subsamples, or most of more than 1000 in plates with data, ``"auto"`` is an
            :class:`AutoPlateFlow`, and the report says why; one of your own, or a callable that
            returns one, is trained in its place.
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

    @knows_options
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

    def _options_given(self) -> list[tuple[str, str]]:
        """Options other than the default ones, as text."""
        found: list[tuple[str, str]] = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = self.objective.name if name == "objective" else getattr(self, name, None)
            default = parameter.default
            if name == "max_steps" and self.more_steps:
                continue  # None stands for two numbers
            if name not in ("model", "callbacks", "checkpoint") and value != default:
                shown = value if isinstance(value, str | int | float) else None
                found.append((name, repr(shown) if shown is not None else type(value).__name__))
        return found

    def __repr__(self) -> str:
        name = getattr(self.model, "__name__", type(self.model).__name__)
        given = "".join(f", {option}={value}" for option, value in self._options_given())
        return f"NFVI({name}{given})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        name = getattr(self.model, "__name__", type(self.model).__name__)
        options = self._options_given() or [("options", "the default ones")]
        return _html.card(f"NFVI of {name}", _html.table((), options))

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
        from pyro_nfvi.infer._run_fit import (
            run_fit,
        )  # all stages and checks, which only a run needs

        return run_fit(self.model, self._options(), TimePlan(budget), args, kwargs)

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
