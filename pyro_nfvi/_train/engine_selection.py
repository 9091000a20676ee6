"""Choice of the engine of a fit: capture, build, check against an eager step, fall back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.graph_runner import GraphRunner
from pyro_nfvi._engine.program import NoRule, OptimizerSpec, Program, Runner, Unsupported
from pyro_nfvi._engine.rounding import rounded_anew, slack_of, tolerance_of
from pyro_nfvi._engine.target_call import TargetCall, target_of
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._pyro_model.batch_model import CHANGING, BatchModel
from pyro_nfvi._pyro_model.log_joint import LogJointBackend
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi._timing import Part
from pyro_nfvi._train.distributed_density import DistributedDensity
from pyro_nfvi._train.engine_faults import attempt
from pyro_nfvi._train.engine_names import ENGINES
from pyro_nfvi._train.recipe import ENGINE, TRAINING
from pyro_nfvi._train.step import EagerRunner, EagerStep
from pyro_nfvi._train.step_comparison import After, difference
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import EngineWarning, OptionError
from pyro_nfvi.objectives._objective import Objective

_ASKED = "asked for"


@dataclass(frozen=True)
class Chosen:
    """The engine of a fit.

    Attributes:
        backend: What takes the steps: ``"native"``, ``"hybrid"``, ``"graph"`` or ``"eager"``.
        reason: Why, in words.
        runner: Runs its steps.
        watch: Compares the step with the model from time to time; None for the eager step.
        asked: It was asked for by name, so that there is no other to fall back to.
    """

    backend: str
    reason: str
    runner: Runner
    watch: Watch | None = None
    asked: bool = False

    @property
    def name(self) -> str:
        """The name that users know: ``"compiled"`` or ``"eager"``."""
        return "eager" if self.backend == "eager" else "compiled"


class Watch:
    """Compare a captured step with the model, which Python may change any time.

    Args:
        step: The eager step.
    """

    def __init__(self, step: EagerStep) -> None:
        self.step = step

    def bound(self, eps: Tensor, streams: TensorDict, *, whole: bool = False) -> float:
        """The eager bound of one step at the live parameters, in nats.

        Without a gradient where that can be, at a fifth of the time; particles whose density is
        finite and whose gradient is not then count, unless ``whole`` asks for the step itself.
        """
        step = self.step
        if whole or not step.objective.from_weights:
            found = step.gradient(eps, streams).bound
            step.optimizer.zero_grad(set_to_none=True)
            return found
        with torch.no_grad():
            z, log_q = step.guide.density_at(streams).push(eps)
            log_w = step.log_joint(z, streams) - log_q
        terms = step.objective.terms(torch.where(torch.isfinite(log_w), log_w, torch.nan))
        return float(terms.nanmean())

    def changed(self, eps: Tensor, streams: TensorDict, found: float) -> str | None:
        """Say that the bound of one step is not the eager one, up to rounding, or None.

        Args:
            eps: Noise of the step.
            streams: Its other random numbers.
            found: The bound that the captured step gave.
        """
        for whole in (False, True):
            # The engine leaves out particles without a finite gradient; so does the whole step.
            expected = self.bound(eps, streams, whole=whole)
            size = 1 + abs(expected)
            slack = tolerance_of(self.step.params) * size
            if expected != expected or abs(expected - found) <= slack:
                return None
        rounded = rounded_anew(lambda: self.bound(eps, streams, whole=True))
        if abs(expected - found) <= slack_of(slack, size, [x - expected for x in rounded]):
            return None
        return (
            "the model changed after it was captured, as Python's own state can (the bound is "
            f"{expected:.6g} nats, not {found:.6g})"
        )


def check_engine(engine: str) -> None:
    """Refuse an engine by name that cannot run here, before anything is fitted.

    Raises:
        OptionError: It needs a compiler, and there is none.
    """
    if engine not in ("compiled", "native", "hybrid"):
        return
    try:
        with attempt("imported"):
            from pyro_nfvi._engine.native.compiler import find_compiler
        with attempt("looking for a compiler"):
            find_compiler()
    except Unsupported as error:
        raise _refused(engine, error) from error


def _refused(engine: str, error: Unsupported) -> OptionError:
    return OptionError(
        f"engine={engine!r} cannot run this fit: {error}. engine='auto' takes what can."
    )


def unit_particles(objective: Objective, count: int) -> int:
    """Return how many of ``count`` particles a unit of the flow alone evaluates at once."""
    rows = ENGINE.unit_particles
    return rows if objective.additive and count % rows == 0 else count


def choose(
    engine: str,
    step: EagerStep,
    num_particles: int,
    max_steps: int,
    *,
    density: LogJointBackend | None = None,
    budget: Budget = UNLIMITED,
    watch: Stopwatch | None = None,
) -> Chosen:
    """Choose and build the engine.

    Args:
        engine: One of :data:`ENGINES`, or the name of a back end, for tests and benchmarks.
        step: The eager step, by which all are measured.
        num_particles: Rows of noise in each step.
        max_steps: Most steps of the fit.
        density: The log joint by compiled code, which a step may call instead of containing it.
        budget: Time for building and for the steps: with a limit, no more than half of what is
            left goes into an engine, and nothing is built for fewer steps than pay it back.
        watch: Credits the time of capture, compilation and comparison.

    Raises:
        OptionError: The engine asked for cannot run this fit; the message is the reason.
    """
    if engine == "eager":
        return Chosen("eager", _ASKED, EagerRunner(step), asked=True)
    if isinstance(step.log_joint.model, BatchModel) and step.log_joint.model.changing:
        if engine != "auto":
            raise _refused(engine, Unsupported(CHANGING))
        return Chosen("eager", CHANGING, EagerRunner(step))
    if engine == "auto" and max_steps < ENGINE.capture_steps:
        least = ENGINE.capture_steps
        reason = f"a fit of fewer than {least} steps is over before a capture is paid back"
        return Chosen("eager", reason, EagerRunner(step))
    builder = _Builder(step, num_particles, budget, watch or Stopwatch())
    if isinstance(density, DistributedDensity):
        return _beside_processes(builder, density, engine, max_steps)
    if engine == "auto" and budget.limit is not None:
        possible = int(budget.left() / builder.step_seconds())
        if possible < ENGINE.capture_steps:
            reason = (
                f"the time left is enough for about {possible} steps, over before a capture is "
                "paid back"
            )
            return Chosen("eager", reason, EagerRunner(step))
    asked = engine == "compiled"
    if engine not in ENGINES:
        try:
            return builder.build(engine, _ASKED, asked=True)
        except Unsupported as error:
            raise _refused(engine, error) from error
    reasons = []
    if asked or max_steps >= ENGINE.compile_steps:
        numbers = float(max_steps) * num_particles * step.log_joint.size
        if numbers <= ENGINE.fused_numbers and builder.call(density):
            with suppress(Unsupported):
                return builder.build("native", "the step is captured and compiled", asked=asked)
            builder.call(None)
        try:
            return builder.build("native", "the step is captured and compiled", asked=asked)
        except Unsupported as error:
            reasons.append(f"not compiled as a whole: {error}")
        if builder.uncovered:
            try:
                reason = "; ".join(["the step is captured and compiled", *reasons])
                return builder.build("hybrid", reason, faster=not asked, asked=asked)
            except Unsupported as error:
                reasons.append(f"not compiled in part: {error}")
        if builder.call_back():
            with suppress(Unsupported):
                reason = "; ".join(["the flow is captured and compiled", *reasons])
                return builder.build("hybrid", reason, asked=asked)
            builder.call(None)
    else:
        reasons.append(
            f"not compiled: a fit of fewer than {ENGINE.compile_steps} steps is over before a "
            "compiler has run"
        )
    try:
        reason = "; ".join(["the step is captured", *reasons])
        return builder.build("graph", reason, faster=not asked, asked=asked)
    except Unsupported as error:
        if str(error) not in "; ".join(reasons):
            reasons.append(f"not replayed: {error}")
    if asked:
        raise _refused(engine, Unsupported("; ".join(reasons)))
    return Chosen("eager", "; ".join(reasons), EagerRunner(step))


def _beside_processes(
    builder: _Builder, density: DistributedDensity, engine: str, max_steps: int
) -> Chosen:
    """Choose for a model that several processes evaluate: the flow alone can be compiled."""
    reason = f"the particles are split over {density.size} processes"
    if engine == "compiled" or max_steps >= ENGINE.compile_steps:
        try:
            builder.call_apart()
            return builder.build("hybrid", reason, asked=engine == "compiled")
        except Unsupported as error:
            if engine == "compiled":
                raise _refused(engine, error) from error
            reason = f"{reason}; not compiled: {error}"
    return Chosen("eager", reason, EagerRunner(builder.step))


class _Builder:
    """Captures once and builds engines from it."""

    def __init__(
        self, step: EagerStep, num_particles: int, budget: Budget, watch: Stopwatch
    ) -> None:
        self.step, self.budget, self.watch = step, budget, watch
        #: Native code failed for want of a rule, and the rest might be compiled.
        self.uncovered = False
        self._target: TargetCall | None = None
        self._program: Program | Unsupported | None = None
        self._eps, self._streams = self._inputs(num_particles)

    def build(self, name: str, reason: str, *, faster: bool = False, asked: bool = False) -> Chosen:
        """Build one engine and check it.

        Args:
            name: Its name.
            reason: Why it is built.
            faster: Take it only if it is faster than the eager step.
            asked: It was asked for by name.
        """
        program = self._captured()
        part: Part = "capture" if name == "graph" else "compile"
        try:
            with attempt("built"), self.watch.part(part):
                spec = OptimizerSpec.of(self.step.optimizer, program.held, TRAINING.clip_norm)
                # Half of the time is for the steps.
                runner = _BUILD[name](program, spec, self.budget.left() / 2)
        except NoRule:
            self.uncovered = True
            raise
        head, *rest = reason.split("; ", 1)
        reason = "; ".join([f"{head} ({name})", *rest])
        if name == "hybrid":
            reason = f"{reason}; {_left(runner)}"
        with self.watch.part("comparison"):
            eager, mine = self._check(name, runner)
        if faster and mine > eager:
            raise Unsupported(f"a step takes {1e3 * mine:.2g} ms, an eager one {1e3 * eager:.2g}")
        return Chosen(name, reason, runner, Watch(self.step), asked)

    def call(self, density: LogJointBackend | None) -> bool:
        """Let the step call a density from now on; None captures the model with the step again.

        Returns:
            Whether that can be: the density is native code, and no parameter of the model trains.
        """
        target = None
        if density is not None and not self.step.model_params:
            target = target_of(density, self.step.log_joint, self._eps, self._streams)
        if target is not self._target:
            self._target, self._program, self.uncovered = target, None, False
        return target is not None

    def call_apart(self) -> None:
        """Let the step call the log joint as it stands, whatever evaluates it.

        Raises:
            Unsupported: Parameters of the model train, whose gradient would be needed.
        """
        log_joint = self.step.log_joint
        if self.step.model_params:
            raise Unsupported("parameters of the model train")
        self._target = TargetCall(log_joint.value_and_grad, tuple(log_joint.subsampled))
        self._program, self.uncovered = None, False

    def call_back(self) -> bool:
        """Let the step call the model in Python, if it is the model that cannot be captured.

        Returns:
            Whether that can be: no parameter of the model trains, or its gradient would be needed.
        """
        if not isinstance(self._program, Unsupported) or self.step.model_params:
            return False
        log_joint = self.step.log_joint
        self._target = TargetCall(log_joint.value_and_grad, tuple(log_joint.subsampled))
        self._program, self.uncovered = None, False
        return True

    def step_seconds(self) -> float:
        """Time one eager gradient, at least a microsecond."""
        begin = self.budget.clock()
        self.step.gradient(self._eps, self._streams)
        self.step.optimizer.zero_grad(set_to_none=True)
        return max(1e-6, self.budget.clock() - begin)

    def _captured(self) -> Program:
        if self._program is None:
            step = self.step
            try:
                with attempt("capturing the step"), self.watch.part("capture"):
                    self._program = self._capture()
            except Unsupported as error:
                # Pyro appends the shapes of the trace to what passes through it.
                self._program = Unsupported(str(error).partition("\nTrace Shapes:")[0].rstrip())
            step.optimizer.zero_grad(set_to_none=True)
        if isinstance(self._program, Unsupported):
            raise self._program
        return self._program

    def _capture(self) -> Program:
        step, count = self.step, len(self._eps)
        if step.rows(count) < count:
            raise Unsupported("the model is so large that its particles are run in parts")
        apart = self._target is not None and self._target.address
        rows = unit_particles(step.objective, count) if apart else count
        program = capture(
            step.guide,
            step.log_joint,
            step.objective,
            step.params,
            len(step.model_params),
            self._eps[:rows],
            self._streams,
            self._target,
        )
        return replace(program, blocks=count // rows)

    def _inputs(self, count: int) -> tuple[Tensor, TensorDict]:
        """Noise and indices of a step outside of the fit, by a constant seed."""
        log_joint = self.step.log_joint
        with torch.no_grad(), seeded(0, "engine inputs"):
            objective = self.step.objective
            # Halfway, where what changes from step to step is not at its end.
            numbers = objective.stream(objective.settled // 2, 1)
            streams = {name: x[0].to(self.step.params[0].device) for name, x in numbers.items()}
            rows = log_joint.draw_subsample()
            return self.step.guide.density_at(rows).sample_base(count), rows | streams

    def _whose(self) -> str:
        """Say who may be at fault when a step differs."""
        fault = "this is a fault of the engine"
        if all(param.dtype == torch.float64 for param in self.step.params):
            return fault.capitalize()
        return (
            "Single precision may be too coarse for this model, the eager step included: try "
            f"torch.set_default_dtype(torch.float64). If it happens there too, {fault}"
        )

    def _check(self, name: str, runner: Runner) -> tuple[float, float]:
        """Compare a step with an eager one from the same state; return the seconds of both.

        Raises:
            Unsupported: They differ.
        """
        step = self.step
        params, optimizer = step.params, step.optimizer
        start = Snapshot.take(0, params, optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        inputs = (
            self._eps.unsqueeze(0),
            {name: index.unsqueeze(0) for name, index in self._streams.items()},
            torch.tensor([rates], dtype=torch.float64),
        )
        # An engine is right or wrong whatever the seed of the fit: this one is a constant.
        away = stream(0, "engine check", device=params[0].device)
        with torch.no_grad():
            for param in params:
                noise = torch.randn(
                    param.shape, generator=away, dtype=param.dtype, device=param.device
                )
                param.add_(ENGINE.perturbation * noise)
        moved = Snapshot.take(0, params, optimizer)
        try:
            seconds, after = [], []
            for one, guard in ((EagerRunner(step), nullcontext()), (runner, attempt("run"))):
                with guard:
                    moved.put(params, optimizer)
                    one.push()
                    one.run(*inputs)  # the first step of a kind pays for more than itself
                    moved.put(params, optimizer)
                    one.push()
                    begin = time.perf_counter()
                    result = one.run(*inputs)
                    seconds.append(time.perf_counter() - begin)
                    one.pull()
                after.append(After.take(result, step))
            theirs, own = after
            problem = difference(moved, theirs, own)
            if problem is not None:
                # Rounding may make more of a difference in this model than in others.
                eager = EagerRunner(step)

                def again() -> After:
                    moved.put(params, optimizer)
                    return After.take(eager.run(*inputs), step)

                problem = difference(moved, theirs, own, list(rounded_anew(again)))
        finally:
            start.put(params, optimizer)
            optimizer.zero_grad(set_to_none=True)
        if problem is not None:
            warn(
                f"The compiled step is not used ({name}): {problem}. {self._whose()}; the fit goes "
                "on without it.",
                EngineWarning,
            )
            raise Unsupported(problem)
        return seconds[0], seconds[1]


def _graph(program: Program, spec: OptimizerSpec, timeout: float) -> Runner:
    del timeout  # there is nothing to build
    return GraphRunner(program, spec)


def _native(
    program: Program, spec: OptimizerSpec, timeout: float, *, eager: bool = False
) -> Runner:
    with attempt("imported"):
        from pyro_nfvi._engine.native.runner import build_native
    return build_native(program, spec, eager=eager, timeout=timeout)


def _hybrid(program: Program, spec: OptimizerSpec, timeout: float) -> Runner:
    return _native(program, spec, timeout, eager=True)


def _left(runner: Runner) -> str:
    """Say which operations a hybrid leaves to PyTorch."""
    names: tuple[str, ...] = runner.info.eager
    if not names:
        return "no operation had to stay with PyTorch"
    stay = "operation stays" if len(names) == 1 else "operations stay"
    return f"{len(names)} {stay} with PyTorch ({', '.join(dict.fromkeys(names))})"


_BUILD: Mapping[str, Callable[[Program, OptimizerSpec, float], Runner]] = {
    "graph": _graph,
    "hybrid": _hybrid,
    "native": _native,
}
