"""One call of ``NFVI.run``: what its stages share, and how each of them is run and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from pyro_nfvi._budget import Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import Modes
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.convergence import StopReason
from pyro_nfvi._optim.learning_rate import Schedule, default_rate
from pyro_nfvi._optim.recipe import CONVERGENCE
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi._train.best_state import keep_best_state
from pyro_nfvi._train.checkpoint import Checkpoint, fingerprint
from pyro_nfvi._train.engine_selection import Chosen, choose
from pyro_nfvi._train.loop import Loop, LoopOptions
from pyro_nfvi._train.optimizer import make_optimizer
from pyro_nfvi._train.progress import Progress
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi._train.stop_reason import stuck
from pyro_nfvi._train.task import Task
from pyro_nfvi.errors import DivergedError, WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.infer._checks.improper import blame_runaway, check_proper, with_fit
from pyro_nfvi.infer._checks.missed_mass import WIDE_ROWS, mass_outside, too_much
from pyro_nfvi.infer._checks.missed_modes import (
    MODE_ROWS,
    best_of,
    look_for_modes,
    missed_modes,
    modes_of_starts,
    proposals,
)
from pyro_nfvi.infer._checks.moments import MOMENT_ROWS, moved_moments
from pyro_nfvi.infer._checks.pyro_density import check_by_pyro, opinion_of_pyro
from pyro_nfvi.infer._checks.relabelling import (
    Relabelling,
    Scored,
    UpToLabels,
    count_once,
    distinct,
    find_relabelling,
)
from pyro_nfvi.infer._checks.tails import TAIL_ROWS, follow_tails, short_tails
from pyro_nfvi.infer._findings import (
    Finding,
    HeavyTails,
    Level,
    MassOutside,
    MissedModes,
    ModeSearch,
    MovedMoments,
    ParamsLeft,
    Relabelled,
    TimeOver,
    find,
    with_finding,
)
from pyro_nfvi.infer._fit import Fit, Training
from pyro_nfvi.infer._guide_spec import flow_name, make_guide
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._scopes import only
from pyro_nfvi.infer._stages.gaussian_start import gaussian_stage, prior_points, start_along
from pyro_nfvi.infer._stages.parameter_ascent import Evidence, nats_left, raise_evidence
from pyro_nfvi.infer._stages.parameter_start import ParamStart, start_params
from pyro_nfvi.infer._time_plan import GAUSSIAN, RUNAWAY_ROWS, SEARCH, TimePlan
from pyro_nfvi.infer._weighted_draws import most_on_all_data, weigh, whole_density

if TYPE_CHECKING:
    from pyro_nfvi.infer._nfvi import NFVI


_PARAM_NUMBERS = 20_000_000  # of one differentiated run, where the model's parameters are judged
#: Draws for which all data have to be affordable where mini-batches are given, at the start.
_START_DRAWS = 1000
#: Runs of the model that judging its parameters takes for each draw, at a guess.
_PARAM_RUNS = 40
#: Most moves of the model's parameters after training, and the nats below which there is none.
_SETTLE, _SETTLED = 4, 0.02
#: Draws on which a fit is judged; fewer where one run of the model is very large, or where every
#: draw takes a run of its own.
_DRAWS, _LOOP_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2000, 500, 200, 300_000_000
#: Draws that the choice of the best state takes, and the comparison of modes, for each.
_KEPT, _COMPARED = 1536, 1024
#: Condition number of a Gaussian in single precision from which on the report says so.
_ILL = 1e6
#: Fits of fewer steps than this take a shorter Gaussian stage.
WHOLE = 1000
#: Draws from the prior around which mass is looked for where no modes were looked for.
_DRAWN = 20
#: Share of the time left that each look, or move, of the model's parameters may take at the end.
_LOOK = 0.5
_NO_STEP = StopReason("max_seconds", "There was no time for a step; the guide is where it starts.")
_INTERRUPTED = StopReason(
    "interrupted", "Interrupted in the Gaussian stage; the guide is where it starts."
)


class FitRun:
    """The model with its arguments, the options, and the clock of one call of ``NFVI.run``.

    Args:
        options: The :class:`NFVI` that runs.
        model: Its model, with discrete sites marked.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        names: The ``pyro.param`` names of the model.
        seed: Seed of all noise.
        budget: The time of the whole call.
    """

    def __init__(
        self,
        options: NFVI,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: frozenset[str],
        seed: int,
        budget: Budget,
    ) -> None:
        self.options, self.model, self.args, self.kwargs = options, model, args, kwargs
        self.names, self.seed, self.time = names, seed, TimePlan(budget)
        self.progress = Progress(options.progress)
        #: Whether Ctrl-C came before there was anything to train.
        self.interrupted = False
        #: Modes that were come upon, and from how many starts.
        self.modes: Modes | None = None
        #: Gaussians on these, or on modes of the first starts where no more were looked for.
        self.others: Normals | None = None
        self.num_starts = 0
        #: Points at which the density was evaluated in search of narrow modes.
        self.num_points = 0
        #: Where mass outside of the guide is looked for, beside wide draws around its own.
        self.proposals: Proposals | None = None
        #: How the model's parameters started; None where they were left alone.
        self.param_start: ParamStart | None = None
        #: Whether they stay where they are while guides train.
        self.hold_params = False
        #: Relabellings that leave the posterior as it is, where modes have images under them.
        self.relabelling: Relabelling | None = None
        #: A point ``(D,)`` of the image where the fit is.
        self.anchor: Tensor | None = None
        #: Lines for the report about what came before training.
        self.notes: list[str] = []

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Hide the guides built so far from Pyro's param store, so that one more can be built.

        The model's own parameters stay, and go on training.
        """
        store = pyro.get_param_store()
        with store.scope(only(store.get_state(), self.names)):
            yield

    # --------------------------------------------------------------------------- the stages

    def whole(self) -> Fit:
        """Fit the guide that the options ask for, from a Gaussian where that can be."""
        options = self.options
        outer = "whitened" if options.precondition else "diagonal"
        guide = make_guide(options.guide, self.model, outer)
        fresh = not guide.is_set_up
        log_joint = self.set_up(guide)
        gaussian = self.precondition(guide, log_joint) if fresh else None
        fit = self.train(guide, log_joint, travels=gaussian is None, notes=self.notes)
        return self.complete(fit)

    def set_up(self, guide: AutoFlow) -> LogJoint:
        """Build a guide's parameters; return the log joint of its latent space."""
        guide.setup(*self.args, **self.kwargs)
        log_joint = LogJoint(self.model, self.args, self.kwargs, guide.latent)
        if check_by_pyro(log_joint, self.time.whole).draws == 0:
            self.notes.append("Pyro's own trace scored no point around the start")
        self.time.measure(log_joint)
        return log_joint

    def precondition(self, guide: AutoFlow, log_joint: LogJoint) -> GaussianFit | None:
        """Move a guide that was just built to the best Gaussian; None where that was not done."""
        options = self.options
        if not options.precondition or guide._outer_kind == "flow" or guide._base is not None:
            return None
        init_loc = guide.latent.init_loc
        if self.time.training.over():
            self.time.leave_out("a Gaussian to start from")
            return None
        budget = self.time.training.part(GAUSSIAN)
        try:
            self._start_params(log_joint, init_loc, budget)
            found = gaussian_stage(
                log_joint,
                init_loc,
                effort=min(1.0, options.max_steps / WHOLE),
                generator=self._generator(init_loc, "gaussian"),
                budget=budget,
                progress=self.progress,
            )
        except KeyboardInterrupt:
            self.interrupted = True
            return None
        except WeightError as error:
            self.notes.append(f"no Gaussian to start from, training starts at init_loc_fn: {error}")
            return None
        if budget.over():
            self.time.leave_out("the last steps to the Gaussian")
        if len(found.starts) > 1:
            self.num_starts = len(found.starts)
            self._look_for_modes(log_joint, init_loc, found)
        if self.proposals is None:
            target = Target(log_joint, init_loc, budget=self.time.training.part(SEARCH))
            drawn = prior_points(log_joint, target, _DRAWN)
            noise = self._generator(init_loc, "places")
            self.proposals = proposals(target, found, None, drawn, noise)
        if self.modes is not None:
            noise = self._generator(init_loc, "best mode")
            affordable = self.time.affords(_COMPARED * (1 + len(self.modes)))
            better = best_of(log_joint, init_loc, found, self.modes, noise) if affordable else found
            if better is not found:
                self.notes.append("a mode of more mass than the first one was found")
            found = better
        guide.start_at(found.loc, found.factor)
        self.notes += start_along(
            guide,
            log_joint,
            found,
            self._generator(init_loc, "directions"),
            budget=self.time.training,
        )
        self.notes.insert(
            0,
            f"started at the best Gaussian of {len(found.starts)} starts: ELBO {found.bound:.2f} "
            f"± {found.bound_se:.2f} nats, condition number of its correlations "
            f"{found.condition:.3g}",
        )
        if found.condition > _ILL and init_loc.dtype == torch.float32:
            self.notes.append(
                "single precision may be too coarse for so large a condition number: unless the "
                "verdict is good, run the model in float64 (torch.set_default_dtype(torch.float64))"
            )
        return found

    def _start_params(self, log_joint: LogJoint, like: Tensor, budget: Budget) -> None:
        """Bring the model's parameters near the highest evidence, before anything rests on them."""
        if not log_joint.named_parameters():
            return
        density = whole_density(log_joint, _START_DRAWS)
        if density is None:
            self.notes.append(
                "the model's parameters start where the model puts them: there is too much data to "
                "score all of it"
            )
            return
        with self.progress.stage("starting the model's parameters", 1, unit="stage"):
            noise = self._generator(like, "parameters")
            found = start_params(log_joint, density, like, generator=noise, budget=budget)
        self.param_start = found
        self.notes.append(
            f"the model's parameters gained {found.gain:.3g} nats of evidence in {found.rounds} "
            f"rounds before training{'' if found.converged else ', and were not at rest'}"
        )

    def settle_params(self, fit: Fit) -> Fit:
        """Move the model's parameters to the highest evidence that the fit's draws see.

        Not where the weights reach no further, or nothing is gained. The finding says how much is
        left.
        """
        log_joint = fit.require_model()
        leaves = log_joint.named_parameters()
        if not leaves:
            return fit
        named = tuple(leaves)
        rows = _PARAM_RUNS * self._num_params_draws(log_joint)
        seen = fit.draws.exact and self._params_density(log_joint) is not None
        if not seen or not self.time.affords(rows, "the look at the model's parameters"):
            return self._with_finding(fit, ParamsLeft(None, names=named, looked=False))
        left = self._nats_left(log_joint, fit)
        rounds = _SETTLE if self.options.precondition else 0
        for _ in range(rounds):
            if left is None or left[0] < _SETTLED or not self.time.affords(rows):
                break
            before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
            count = self._num_params_draws(log_joint)
            density = self._params_density(log_joint)
            assert density is not None  # or nothing could be said of what is left
            raise_evidence(
                Evidence(
                    density,
                    fit.draws.z[:count],
                    fit.draws.log_q[:count],
                    list(leaves.values()),
                ),
                budget=self.time.whole.part(_LOOK),
            )
            moved = self.judge(fit.guide, log_joint, fit.training)
            gained = moved.log_evidence()[0] - fit.log_evidence()[0] if moved.draws.exact else 0.0
            if not gained > 0:
                with torch.no_grad():
                    for name, leaf in leaves.items():
                        leaf.copy_(before[name])
                break
            note = f"the model's parameters gained {gained:.3g} nats of evidence after training"
            training = dataclasses.replace(moved.training, notes=(*moved.training.notes, note))
            fit = dataclasses.replace(moved, training=training)
            left = self._nats_left(log_joint, fit)
        finding = ParamsLeft(None, 0.0, named) if left is None else ParamsLeft(*left, named)
        return self._with_finding(fit, finding)

    @staticmethod
    def _with_finding(fit: Fit, finding: Finding) -> Fit:
        """Return a fit with one more finding, in place of an earlier one of its kind."""
        findings = with_finding(fit.training.findings, finding)
        training = dataclasses.replace(fit.training, findings=findings)
        return dataclasses.replace(fit, training=training)

    def _nats_left(self, log_joint: LogJoint, fit: Fit) -> tuple[float, float] | None:
        count = self._num_params_draws(log_joint)
        z, log_q = fit.draws.z[:count], fit.draws.log_q[:count]
        with self.progress.stage("judging the model's parameters", 1, unit="look"):
            density = self._params_density(log_joint)
            assert density is not None  # or they would not be looked at
            budget = self.time.whole.part(_LOOK)
            left = nats_left(density, z, log_q, log_joint.named_parameters(), budget)
            if budget.over():
                self.time.leave_out("the end of the look at the model's parameters")
            return left

    def _params_density(self, log_joint: LogJoint) -> Callable[[Tensor], Tensor] | None:
        """Log joint on all data on which parameters are judged; None where there are too many."""
        return whole_density(log_joint, self._num_params_draws(log_joint))

    @staticmethod
    def _num_params_draws(log_joint: LogJoint) -> int:
        most = _LOOP_DRAWS if log_joint.how == "loop" else _DRAWS
        return max(_FEWEST_DRAWS, min(most, _PARAM_NUMBERS // max(1, log_joint.size)))

    def _look_for_modes(self, log_joint: LogJoint, like: Tensor, found: GaussianFit) -> None:
        """Look for modes from more points than the Gaussian's own starts."""
        if self.time.training.over():
            self.time.leave_out("the search for modes")
            return
        once = self._images(log_joint, like, found)
        budget = self.time.training.part(SEARCH)
        if self.options.explore == "off":
            self.others = modes_of_starts(log_joint, like, found, once, budget)
            if budget.over():
                self.time.leave_out("the end of the search for modes")
            return
        try:
            looked = look_for_modes(
                log_joint,
                like,
                found,
                tempered=self.options.explore == "tempered",
                effort=min(1.0, self.options.max_steps / WHOLE),
                generator=self._generator(like, "modes"),
                relabelling=once,
                budget=budget,
                progress=self.progress,
            )
        except KeyboardInterrupt:
            self.interrupted = True
            return
        if looked is None:
            self.others = modes_of_starts(log_joint, like, found, once, budget)
            if budget.over():
                self.time.leave_out("the end of the search for modes")
            return
        self.modes, self.proposals, self.num_points = looked
        if not self.modes.finished:
            self.time.leave_out("the end of the search for modes")
        self.others = self.modes.normals
        self.num_starts = self.modes.num_starts
        hits = self.modes.hits.tolist()
        where = f"{len(hits)} modes" if len(hits) > 1 else "this one mode"
        self.notes.append(
            f"{sum(hits)} of {self.num_starts} starts ended in {where}; one to which no start came "
            f"is not seen ({self.num_points} points were scored in search of narrow ones)"
        )
        if self.modes.left_out:
            self.notes.append(
                f"{self.modes.left_out} more were left out as places with next to no mass, such as "
                "the neck of a funnel"
            )

    def _images(self, log_joint: LogJoint, like: Tensor, found: GaussianFit) -> Relabelling | None:
        """Find relabellings of exchangeable latents; return them where modes count up to these.

        Where they are no more than the modes that a mixture holds, all images are fitted.
        """
        if log_joint.how == "loop" or log_joint.subsampled:
            return None
        # Draws of the prior; where it has none, points about the origin.
        budget = self.time.training.part(SEARCH)
        target = Target(log_joint, like, budget=budget)
        generator = self._generator(like, "relabelling")
        noise = torch.randn(8, len(like), generator=generator, device=like.device).to(found.loc)
        points = torch.cat([prior_points(log_joint, target, 3).to(noise), noise])
        with self.progress.stage("looking for exchangeable latents", 1, unit="look"):
            group = find_relabelling(log_joint, points, budget)
            apart = group is not None and distinct(log_joint, group, found.loc, budget)
        if budget.over():
            self.time.leave_out("the end of the look for exchangeable latents")
        if group is None or not apart:
            return None
        self.relabelling, self.anchor = group, found.loc
        return group if group.order > MODE_SEARCH.most_modes else None

    def _relabelled(self, log_joint: LogJoint, count: int) -> Relabelled | None:
        """Say what relabellings make of the modes in a fit, of which there are ``count``."""
        group = self.relabelling
        if group is None:
            return None
        if group.order > MODE_SEARCH.most_modes:
            return Relabelled(group.names, group.order, max(1, count), images=False)
        if count < 2 or self.modes is None:
            return None
        budget = self.time.whole.part(_LOOK)
        once = count_once(log_joint, group, self.modes.normals.loc, budget)
        if budget.over():
            self.time.leave_out("the end of the count of modes up to labels")
        return Relabelled(group.names, group.order, once, images=True)

    def train(
        self,
        guide: AutoFlow,
        log_joint: LogJoint,
        *,
        travels: bool,
        notes: list[str],
        max_steps: int | None = None,
        stage: int = 1,
        grow: int = 1,
    ) -> Fit:
        """Train a guide and judge it.

        Args:
            guide: The guide, set up.
            log_joint: Its log joint.
            travels: Whether its outer map has a way to go.
            notes: What happened before.
            max_steps: Most steps; those of the options by default.
            stage: Which training of this run it is; each has a checkpoint of its own.
            grow: Times as many particles; from 2 on, what is flat is judged over twice the steps.

        Raises:
            DivergedError: With the best fit until then.
        """
        options = self.options
        schedule = Schedule(
            options.max_steps if max_steps is None else max_steps,
            early=options.stop and not log_joint.subsampled,  # noise hides that a bound rises
        )
        count = grow * options.num_particles
        loop = self._loop(guide, log_joint, schedule, stage, count, grow, travels=travels)
        loop.history.notes += notes
        started = self.time.whole.spent()
        try:
            if self.interrupted:
                reason = _INTERRUPTED
            elif self.time.affords(count, "a step of training"):
                reason = loop.run()
            else:
                reason = _NO_STEP
        except DivergedError as error:
            saved = None
            if loop.recovery.skipped < loop.history.step:
                gave_up = StopReason("diverged", f"Gave up after {loop.history.step} steps.")
                left = loop.left_out()
                if left is not None and left.level is Level.FAULT:
                    gave_up = stuck(left, loop.history.step)
                saved = self._finish(loop, gave_up, started)
            afford = self.time.affords(RUNAWAY_ROWS[log_joint.how])
            if not afford:
                raise with_fit(error, saved) from error
            raise blame_runaway(error, saved, self.time.whole) from error
        return self._finish(loop, reason, started)

    def judge(self, guide: AutoFlow | AutoMixture, log_joint: LogJoint, training: Training) -> Fit:
        """Score draws of a guide, and wrap it up with how it came about."""
        most = _LOOP_DRAWS if log_joint.how == "loop" else _DRAWS
        count = max(_FEWEST_DRAWS, min(most, _NUMBERS // max(1, log_joint.size)))
        density = guide.density()
        noise = self._generator(guide.latent.init_loc, "judge") if density.base is None else None
        begin = self.time.whole.spent()
        with torch.no_grad(), self.progress.stage("scoring draws", count, unit="draw") as tick:
            draws = weigh(density, log_joint, count, noise, budget=self.time.whole, tick=tick)
        end = self.time.whole.spent()
        whole = most_on_all_data(log_joint)
        if len(draws.z) < min(count, whole):
            self.time.leave_out("some of the draws on which a fit is judged")
        if not draws.exact and len(draws.z) <= whole:
            self.time.leave_out("a look at all data")
        training.timing.update(evaluate=end - begin, total=end)
        params = ModelParams.of(log_joint.param_leaves(), log_joint.param_constraints)
        return Fit(guide, draws, training, params.constrained(), log_joint, params)

    def leaves_out(self, fit: Fit) -> bool:
        """Whether posterior mass lies where the guide has next to nothing, for all that is seen."""
        log_joint = fit.require_model()
        if not self.time.affords(WIDE_ROWS[log_joint.how], of=self.time.training):
            return False  # there is no time to mend it either
        density = self._up_to_labels(fit)
        if log_joint.how == "loop" or log_joint.subsampled:
            return False  # flows that are trained row by row would not mend it in any time
        budget = self.time.training.part(_LOOK)
        proposals = self.proposals
        return too_much(mass_outside(density, log_joint, fit.draws, self.seed, proposals, budget))

    def _up_to_labels(self, fit: Fit) -> Scored:
        """Density of a fit, of points at the image where the fit is."""
        density, group = fit.guide.density(), self.relabelling
        if group is None or group.order <= MODE_SEARCH.most_modes:
            return density
        assert self.anchor is not None
        return UpToLabels(density, group, self.anchor.to(fit.draws.z))

    def moments(self, fit: Fit, tails: HeavyTails | None, budget: Budget) -> MovedMoments | None:
        """Compare means and sds of many of the guide's draws with weighted ones.

        None where there was no time for it.
        """
        moved = moved_moments(
            fit.guide.density(),
            fit.require_model(),
            fit.draws,
            self.seed,
            heavy=() if tails is None else tails.without_variance,
            budget=budget,
        )
        if moved is None:
            return None
        return MovedMoments(
            tuple(one.name for one in moved),
            tuple(one.shift for one in moved),
            tuple(one.stretch for one in moved),
        )

    def complete(self, fit: Fit) -> Fit:
        """Look for what the fit's own draws cannot see, and whether there is a posterior at all.

        Raises:
            DivergedError: The density grows without limit.
        """
        fit = self.settle_params(fit)
        log_joint = fit.require_model()
        density = self._up_to_labels(fit)
        missed: list[str] = []
        others = 0 if self.others is None else len(self.others)
        if others and self.time.affords(MODE_ROWS * others, "the look at modes that are missed"):
            budget = self.time.whole.part(_LOOK)
            missed = missed_modes(density, log_joint, self.others, fit.draws, budget)
            if budget.over():
                self.time.leave_out("the end of the look at modes that are missed")
        outside = None
        if self.time.affords(WIDE_ROWS[log_joint.how], "the look for mass outside of the guide"):
            with self.progress.stage("looking for mass outside of the guide", 1, unit="look"):
                budget = self.time.whole.part(_LOOK)
                proposals = self.proposals
                outside = mass_outside(density, log_joint, fit.draws, self.seed, proposals, budget)
                if budget.over():
                    self.time.leave_out("the look for mass outside of the guide")
        proper = self.time.affords(
            RUNAWAY_ROWS[log_joint.how], "the look for directions without a posterior"
        )
        alone = sum(mode["starts"] <= 1 for mode in fit.modes)
        count = len(fit.modes)
        findings: list[Finding] = [
            *fit.training.findings,
            ModeSearch(
                self.num_starts, count, alone, count >= MODE_SEARCH.most_modes, self.num_points
            ),
            MassOutside.of(outside, unseen=not self.num_starts),
        ]
        if self.time.affords(TAIL_ROWS[log_joint.how], "the look at tails"):
            with self.progress.stage("following tails", 1, unit="look"):
                budget = self.time.whole.part(_LOOK)
                followed = follow_tails(fit.latent, log_joint, fit.draws, budget)
                heavy = followed.without_variance
                findings += [followed, short_tails(fit.latent, log_joint, fit.draws, heavy, budget)]
                if budget.over():
                    self.time.leave_out("the end of the look at tails")
        if self.time.affords(MOMENT_ROWS[log_joint.how], "the look at means and sds of more draws"):
            with self.progress.stage("comparing means and sds", 1, unit="look"):
                tails = find(findings, HeavyTails)
                moved = self.moments(fit, tails, self.time.whole.part(_LOOK))
            if moved is None:
                self.time.leave_out("the look at means and sds of more draws")
            else:
                findings.append(moved)
        if self.time.affords(1, "a second opinion by Pyro's own trace"):
            findings.append(opinion_of_pyro(fit, self.time.whole))
        if missed:
            findings.append(MissedModes(len(missed)))
        if relabelled := self._relabelled(log_joint, count):
            findings.append(relabelled)
        training = dataclasses.replace(
            fit.training, findings=tuple(findings), notes=(*fit.training.notes, *missed)
        )
        fit = self._with_undone(dataclasses.replace(fit, training=training))
        if not proper:
            return fit
        with self.progress.stage("looking whether there is a posterior", 1, unit="look"):
            budget = self.time.whole.part(1.0)
            fit = check_proper(fit, budget)
            if budget.over():
                self.time.leave_out("the look for directions without a posterior")
        return self._with_undone(fit)

    def _with_undone(self, fit: Fit) -> Fit:
        """Say in a fit's findings what was left out for lack of time."""
        if not self.time.undone:
            return fit
        assert self.time.whole.limit is not None
        over = TimeOver(self.time.whole.limit, tuple(self.time.undone))
        return self._with_finding(fit, over)

    def settings(self, guide: AutoFlow | AutoMixture, log_joint: LogJoint) -> dict[str, Any]:
        """Options of this run, by name, for the fit's report and file."""
        return {
            "flow": flow_name(guide),
            "objective": self.options.objective.name,
            "num_particles": self.options.num_particles,
            "max_steps": self.options.max_steps,
            "seed": self.seed,
            "particles_by": log_joint.how,
            "particles_why": log_joint.why,
        }

    # ---------------------------------------------------------------------------- one training

    def _generator(self, like: Tensor, *labels: int | str) -> torch.Generator:
        return stream(self.seed, *labels, device=like.device)

    def _loop(
        self,
        guide: AutoFlow,
        log_joint: LogJoint,
        schedule: Schedule,
        stage: int,
        count: int,
        grow: int,
        *,
        travels: bool,
    ) -> Loop:
        options = self.options
        own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
        outer = [p for name, p in own.items() if not name.startswith("flow.")]
        inner = [p for name, p in own.items() if name.startswith("flow.")]
        models = [] if self.hold_params else log_joint.parameters()
        params = [*inner, *outer, *models]
        rate = default_rate(guide.latent.dim)
        start = self.param_start
        optimizer = make_optimizer(
            options.optim,
            inner,
            outer,
            rate,
            travels=travels,
            models=models,
            unit=1.0 if start is None or start.unit is None else start.unit,
        )
        step = EagerStep(guide, log_joint, options.objective, params, len(models), optimizer)
        # Another base draws from torch's own state, which is the fit's for this time.
        standard = guide.density().base is None
        asked = "svi" if self.interrupted else options.engine
        generator = None
        if standard:
            generator = self._generator(guide.latent.init_loc, "training", stage)
        return Loop(
            Task(guide, log_joint, options.objective, params, optimizer, count, generator),
            self._engine(asked, step, count, schedule.max_steps),
            schedule,
            LoopOptions(
                stop=options.stop and not log_joint.subsampled,
                callbacks=options.callbacks,
                what=f"training {flow_name(guide) or 'the Gaussian'}",
                # What changes in the first training, such as a temperature, has changed for good.
                first=0 if stage == 1 else options.objective.settled,
                average=options.average or bool(log_joint.subsampled),
                convergence=dataclasses.replace(
                    CONVERGENCE, window=min(grow, 2) * CONVERGENCE.window
                ),
            ),
            checkpoint=self._checkpoint(guide, stage),
            progress=self.progress,
            budget=self.time.training,
        )

    def _engine(self, asked: str, step: EagerStep, count: int, max_steps: int) -> Chosen:
        with self.progress.stage("choosing and building the engine", 1, unit="engine") as tick:
            chosen = choose(asked, step, count, max_steps, budget=self.time.training)
            tick(1)
        return chosen

    def _checkpoint(self, guide: AutoFlow, stage: int) -> Checkpoint | None:
        options = self.options
        if options.checkpoint is None:
            return None
        identity = fingerprint(self.args, self.kwargs) | {
            "latent space": guide.latent.spec(),
            "guide": {name: list(p.shape) for name, p in guide.named_parameters()},
            "objective": options.objective.name,
            "num_particles": options.num_particles,
            "seed": options.seed,
        }
        path = str(options.checkpoint) + ("" if stage == 1 else f".{stage}")
        return Checkpoint(path, options.checkpoint_every, options.resume, identity)

    def _finish(self, loop: Loop, reason: StopReason, started: float) -> Fit:
        """Keep the better of the last and the best state, judge it, and wrap it up."""
        trained, state, engine = self.time.whole.spent(), loop.history, loop.engine
        notes = list(state.notes)
        left = loop.left_out()
        others = loop.other_states()
        if self.time.affords(_KEPT) and not keep_best_state(
            loop.task, others, self.seed, self.time.whole
        ):
            which = "the average of some, or " if loop.options.average else ""
            notes.append(
                f"{which}the state of an earlier step was better than the last one and is kept"
            )
        if skipped := loop.recovery.skipped:
            words = f"{skipped} step{'s were' if skipped > 1 else ' was'}"
            notes.append(f"{words} skipped: gradients were not finite")
        if state.num_bad:
            notes.append(f"{state.num_bad} particles were left out: not finite")
        timing = {
            "setup": started,
            "fit": trained - started,
            "evaluate": 0.0,
            "total": 0.0,
            "steps_per_s": state.step / max(1e-9, trained - started),
            "capture": engine.seconds.get("capture", 0.0),
            "compile": engine.seconds.get("compile", 0.0),
            "step": (trained - started) / max(1, state.step),
        }
        training = Training(
            torch.tensor(state.losses, dtype=torch.float64),
            reason,
            engine.name,
            engine.reason,
            timing,
            self.settings(loop.task.guide, loop.task.log_joint),
            tuple(notes),
            () if left is None else (left,),
        )
        return self.judge(loop.task.guide, loop.task.log_joint, training)
