"""``LogJoint``: the model's log joint of a batch of unconstrained vectors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_nfvi._chain_rule import score
from pyro_nfvi._compat import is_transformed, is_watched
from pyro_nfvi._pyro_model.batch_model import drawn_plates
from pyro_nfvi._pyro_model.dependence import check_dependence, check_own_guide
from pyro_nfvi._pyro_model.discrete_draws import Assignment
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.missing_data import fillings
from pyro_nfvi._pyro_model.model_checks import (
    check_data,
    check_discrete_plates,
    check_finite,
    check_same_numbers,
    check_structure,
    nonfinite_sites,
    quiet,
)
from pyro_nfvi._pyro_model.model_run import (
    DETERMINISTIC,
    NO_SITES,
    TERM,
    Evaluation,
    ModelRun,
    is_deterministic,
    is_observed,
    is_replaced,
)
from pyro_nfvi._pyro_model.module_buffers import buffers_of, check_buffers
from pyro_nfvi._pyro_model.param_sites import constraint_of, param_leaves
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._pyro_model.subsampling import draw_without_replacement
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.errors import ModelError, OptionError, ShapeError

Way = Literal["plate", "vmap", "loop"]
_WAYS: tuple[Way, ...] = ("plate", "vmap", "loop")
#: Log joint, deterministic sites, log likelihoods.
_Outputs: TypeAlias = "tuple[Tensor, TensorDict, TensorDict]"


class LogJointBackend(Protocol):
    """A stand-in for the model where the log joint is evaluated: compiled code, or processes."""

    def takes(self, z: Tensor, subsample: Mapping[str, Tensor]) -> bool:
        """Tell whether it was built for such inputs."""

    def value_and_grad(self, z: Tensor, subsample: Mapping[str, Tensor]) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``."""

    def difference(self) -> str | None:
        """Say how it differs from the model as it is now, or None."""


class _Compiled(torch.autograd.Function):
    """A log density by compiled code, with its gradient in the rows."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, compiled: LogJointBackend, subsample: Mapping[str, Tensor]
    ) -> Tensor:
        log_p, gradient = compiled.value_and_grad(rows, subsample)
        ctx.save_for_backward(gradient)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * gradient, None, None


class LogJoint:
    r"""The log joint density of a model, as a function of unconstrained vectors.

    .. math:: z \mapsto \log p(x, \theta(z)) + \log|\partial\theta/\partial z|

    Particles are evaluated together: in a plate left of all plates of the model, else by
    ``torch.vmap``, else one by one. Each way is compared, when this object is made, with the
    model run alone at several points; one that gives other numbers is not used. ``how`` and
    ``why`` say what was chosen and why in words.

    Enumerable discrete sites are summed out; ``scale`` and ``mask`` handlers count. Subsampling
    plates take their indices as an input (``draw_subsample``).

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latent: The latent space of the model's prototype trace.
        way: Use this way of evaluating particles and no other.

    Shape:
        ``z (*b, D)`` -> ``(*b,)``.

    Units:
        Nats.

    Cost:
        One run of the model for all particles (``loop``: one for each).

    Raises:
        ModelError: The data has NaN, the log joint is not finite at the initial point, the
            model draws random numbers of its own, or its sites are not those of the space.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(1.0)
        >>> space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace(y))
        >>> log_joint = LogJoint(model, (y,), {}, space)
        >>> log_joint(torch.zeros(4, 1)).shape
        torch.Size([4])
        >>> log_joint.how
        'plate'
    """

    @takes_turn
    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latent: LatentSpace,
        *,
        way: Way | None = None,
    ) -> None:
        if way is not None and way not in _WAYS:
            raise OptionError(f"way is one of {', '.join(_WAYS)}; got {way!r}.")
        self.latent = latent
        devices = [latent.init_loc.device.index] if latent.init_loc.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            prototype, enumerated = self._prototype(model, args, kwargs)
            #: ``plate name -> (size, subsample_size)`` of the plates that subsample.
            self.subsampled = drawn_plates(prototype)
            #: Names of the discrete sites that are summed out.
            self.enumerated = enumerated
            #: Names of the sites that reparameterisers replaced, in the order of the trace.
            self.replaced = tuple(
                name for name, site in prototype.nodes.items() if is_replaced(site, latent.sites)
            )
            check_structure(prototype, latent, enumerated)
            check_data(prototype, latent, model, args, kwargs)
            nesting = self._nesting(prototype)
            self._run = ModelRun(
                model,
                args,
                kwargs,
                latent,
                max_plate_nesting=nesting,
                enumerated=enumerated,
                missing=fillings(prototype),
                deterministic=frozenset(
                    name for name, site in prototype.nodes.items() if is_deterministic(site)
                ),
                observed=frozenset(
                    name
                    for name, site in prototype.nodes.items()
                    if is_observed(site, latent.sites)
                ),
            )
            subsample = self.draw_subsample()
            check_own_guide(self._run, latent, subsample, prototype)
            first = self._check_model(subsample)
            #: Numbers that one run for one particle holds.
            self.size = sum(
                max(site["value"].numel(), site["log_prob"].numel())
                for site in first.nodes.values()
                if site["type"] == "sample" and torch.is_tensor(site["value"])
            )
            #: The vectorised plates in which a site stands, by site.
            self.plates = {
                name: tuple(f for f in site["cond_indep_stack"] if f.vectorized)
                for name, site in first.nodes.items()
                if site["type"] == "sample" and not site_is_subsample(site)
            }
            #: Names of the sites of the prior, and why a site has no density of its own.
            self.priors, self.term_faults = self._run.terms(first)
            self._has_deterministic = bool(self._run.deterministic)
            #: Constraints of the model's parameters, by param site.
            self.param_constraints = {n: constraint_of(first, n) for n in param_leaves(first)}
            self._leaves = param_leaves(first)
            # As many check points as no axis of the model is long, so that a wrong broadcast shows.
            taken = {n for site in first.nodes.values() for n in _axes(site)}
            self._count = next(n for n in itertools.count(3) if n not in taken)
            self.how, self.why = self._choose(way, subsample)
        self._compiled: LogJointBackend | None = None
        self._way = way
        self._how_sites: dict[frozenset[str], Way] = {}
        self._assignment: Assignment | None = None

    @property
    def max_plate_nesting(self) -> int:
        """Dimensions, from the right, that plates and batch shapes of the model take."""
        return self._run.max_plate_nesting

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        return self._run.model

    @property
    def in_parts(self) -> bool:
        """True where particles are runs of their own, or see mini-batches of the data.

        Checks that need many rows of the whole log joint in one call do without there.
        """
        return self.how == "loop" or bool(self.subsampled)

    @property
    def missing(self) -> TensorDict:
        """Values to put where an observation is NaN under a mask, by site."""
        return self._run.missing

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the model."""
        return self._run.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        return dict(self._run.kwargs)

    def param_leaves(self) -> TensorDict:
        """Return the unconstrained leaves of all param sites, trained or not.

        From Pyro's param store where it has them, else from the modules that hold them. Call it in
        the store scope in which the model is run.
        """
        store = pyro.get_param_store()
        return {
            name: store[name].unconstrained() if name in store else leaf
            for name, leaf in self._leaves.items()
        }

    def named_parameters(self) -> TensorDict:
        """Return the leaves of :meth:`param_leaves` that are trained."""
        return {name: leaf for name, leaf in self.param_leaves().items() if leaf.requires_grad}

    def parameters(self) -> list[Tensor]:
        """The leaves of :meth:`named_parameters`."""
        return list(self.named_parameters().values())

    def draw_subsample(self, generator: torch.Generator | None = None) -> TensorDict:
        """Draw indices for the plates that subsample; empty if none does."""
        device = self.latent.init_loc.device
        return {
            name: torch.randperm(size, generator=generator, device=device)[:count]
            for name, (size, count) in self.subsampled.items()
        }

    def draw_subsamples(self, num: int, generator: torch.Generator | None = None) -> TensorDict:
        """Draw indices for ``num`` steps at once: ``(num, count)`` for each plate."""
        device = self.latent.init_loc.device
        return {
            name: draw_without_replacement(num, size, count, generator=generator, device=device)
            for name, (size, count) in self.subsampled.items()
        }

    @property
    def eager(self) -> LogJoint:
        """The log joint by the model itself, without compiled code."""
        if self._compiled is None:
            return self
        return copy.copy(self)

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LogJoint:
        """Return the log joint by the model itself at other arguments of the same shapes.

        Nothing is checked: for the same data in another precision.
        """
        made = copy.copy(self)
        made._compiled = None
        made._run = copy.copy(self._run)
        made._run.args, made._run.kwargs = args, dict(kwargs)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave out compiled code, which belongs to the process: copies evaluate the model."""
        return {**self.__dict__, "_compiled": None}

    @property
    def compiled(self) -> LogJointBackend | None:
        """The compiled code that evaluates it; None where the model does."""
        return self._compiled

    def use(self, compiled: LogJointBackend | None) -> None:
        """Evaluate by compiled code from now on, wherever it can stand in for the model."""
        self._compiled = compiled

    @takes_turn
    def __call__(self, z: Tensor, subsample: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate ``z (*b, D)``; without ``subsample`` new indices are drawn."""
        subsample = self.draw_subsample() if subsample is None else subsample
        compiled = self._standing_in(z, subsample)
        if compiled is None or (torch.is_grad_enabled() and self.parameters()):
            return self._evaluate(z, subsample, self.how)[0].reshape(z.shape[:-1])
        rows = z.reshape(-1, self.latent.dim)
        if torch.is_grad_enabled() and z.requires_grad:
            log_p: Tensor = _Compiled.apply(rows, compiled, subsample)
        else:
            log_p, _ = compiled.value_and_grad(rows, subsample)
        return log_p.reshape(z.shape[:-1])

    @takes_turn
    def value_and_grad(
        self, z: Tensor, subsample: Mapping[str, Tensor] | None = None
    ) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``, without a graph.

        The gradient is that of :func:`pyro_nfvi._chain_rule.score`.
        """
        subsample = self.draw_subsample() if subsample is None else subsample
        compiled = self._standing_in(z, subsample)
        if compiled is not None:
            return compiled.value_and_grad(z, subsample)
        log_p, gradient, _ = score(lambda rows: self.eager(rows, subsample), z)
        return log_p, gradient

    def _standing_in(self, z: Tensor, subsample: Mapping[str, Tensor]) -> LogJointBackend | None:
        """Return the compiled code, if there is some that takes these inputs and nobody watches.

        What records operations, or transforms functions, has to see the model.
        """
        compiled = self._compiled
        if compiled is None or is_watched(unknown=True) or is_transformed(unknown=True):
            return None
        fits = z.dim() > 0 and z.shape[-1] == self.latent.dim and compiled.takes(z, subsample)
        return compiled if fits else None

    @takes_turn
    def evaluate(
        self,
        z: Tensor,
        subsample: Mapping[str, Tensor] | None = None,
        *,
        log_likelihood: bool | Collection[str] = False,
        log_prior: bool = False,
        deterministic: bool = True,
        discrete: bool = False,
        generator: torch.Generator | None = None,
    ) -> Evaluation:
        """Evaluate ``z (S, D)`` with the deterministic sites, without gradients.

        Where no site is asked for (``deterministic=False``, or a model without such sites), by
        compiled code if there is some; else by the model, in chunks that bound the memory of one
        run. ``log_likelihood=True`` adds the log density of every observation and factor,
        ``(S, *batch_shape)``, unscaled, and names of sites that of these alone;
        ``log_prior=True`` adds that of the latent sites, as it counts in the log joint;
        ``discrete=True`` draws of the discrete sites that are summed out, from their posterior
        given ``z`` (``generator`` is their source).
        Deterministic sites are those of such draws.

        Raises:
            ModelError: The log likelihood does not split into observations, since they share a
                discrete site that is summed out.
        """
        if z.dim() != 2:
            raise ShapeError(f"evaluate needs z of shape (S, {self.latent.dim}); got {z.shape}.")
        # Under enumeration a deterministic site may hold one value for each category.
        fixed = frozenset({DETERMINISTIC} if deterministic and not self.enumerated else ())
        named = () if isinstance(log_likelihood, bool) else log_likelihood
        likelihoods = self._run.observed if log_likelihood is True else named
        for name, fault in self.term_faults.items():
            if name in likelihoods:
                raise ModelError(f"{fault}.")
        priors = [n for n in self.priors if n not in self.term_faults] if log_prior else []
        sites = fixed | {TERM + name for name in (*likelihoods, *priors)}
        deterministic = deterministic and self._has_deterministic
        draws = bool(self.enumerated) and (discrete or deterministic)
        subsample = self.draw_subsample() if subsample is None else subsample
        if not (likelihoods or priors or deterministic or draws):
            compiled = self._standing_in(z, subsample)
            if compiled is not None:
                return Evaluation(compiled.value_and_grad(z, subsample)[0], {}, {})
        rows = max(1, MODELS.chunk // max(1, self.size))
        with torch.no_grad():
            if sites not in self._how_sites:
                # A way may give right totals and sites of a wrong shape.
                self._how_sites[sites] = self._choose(self._way, subsample, sites)[0]
            how = self._how_sites[sites]
            chunks = z.split(rows)
            parts = [self._evaluate(chunk, subsample, how, sites) for chunk in chunks]
            log_p, values, terms = _merged(parts, torch.cat)
            likelihood = {name: terms[name] for name in terms if name not in priors}
            prior = {name: terms[name] for name in priors}
            if not draws:
                return Evaluation(log_p, values, likelihood, log_prior=prior)
            if self._assignment is None:
                ways = _WAYS if self._way is None else (self._way,)
                points = self.points(self._count)
                self._assignment = Assignment(self._run, ways, points, subsample)
            drawn = [self._assignment.draw(chunk, subsample, generator) for chunk in chunks]
        found, values = (
            {name: torch.cat([part[place][name] for part in drawn]) for name in drawn[0][place]}
            for place in (0, 1)
        )
        return Evaluation(log_p, values, likelihood, found, prior)

    @takes_turn
    def locate_nonfinite(
        self, z: Tensor, subsample: Mapping[str, Tensor] | None = None
    ) -> list[str]:
        """Name the sites at which ``z (D,)`` makes the model not finite."""
        subsample = self.draw_subsample() if subsample is None else subsample
        with torch.no_grad(), pyro.validation_enabled(False):
            values, _ = self.latent.constrain(z)
            trace = self._run.trace(values, subsample)
        if not self.enumerated:
            return nonfinite_sites(trace)
        # An impossible value of a discrete site scores -inf, which is no fault.
        return [n for n in nonfinite_sites(trace) if torch.isnan(trace.nodes[n]["log_prob"]).any()]

    @takes_turn
    def nonfinite_row(self, z: Tensor, subsample: Mapping[str, Tensor], site: str) -> str:
        """Name the first row of a plate that subsamples at which a site is not finite.

        Returns:
            A clause, such as ``" in row 7 of the plate 'cells'"``; empty where the site is in none.
        """
        with torch.no_grad(), pyro.validation_enabled(False):
            values, _ = self.latent.constrain(z)
            node = self._run.trace(values, subsample).nodes[site]
        log_prob = node["log_prob"]
        for frame in node["cond_indep_stack"]:
            if frame.name in self.subsampled and frame.vectorized and frame.name in subsample:
                axis = log_prob.dim() + frame.dim
                bad = (
                    (~torch.isfinite(log_prob))
                    .movedim(axis, 0)
                    .reshape(log_prob.shape[axis], -1)
                    .any(1)
                )
                for place in bad.nonzero()[:1, 0]:
                    row = int(subsample[frame.name][place])
                    return f" in row {row} of the plate {frame.name!r}"
        return ""

    def _evaluate(
        self,
        z: Tensor,
        subsample: Mapping[str, Tensor] | None,
        how: Way,
        sites: frozenset[str] = NO_SITES,
    ) -> _Outputs:
        if z.dim() == 0 or z.shape[-1] != self.latent.dim:
            raise ShapeError(
                f"The log joint needs z of shape (*b, {self.latent.dim}); got {tuple(z.shape)}."
            )
        subsample = self.draw_subsample() if subsample is None else subsample
        rows = z.reshape(-1, self.latent.dim)
        try:
            return self._together(rows, subsample, how, sites)
        except torch.linalg.LinAlgError:
            # A matrix without a factor at some row, say of a Gaussian process far out. Within a
            # mode that records there are no rows to choose.
            if is_watched():
                raise
            parts = self._apart(rows, subsample, how, sites)
            good = next((part for part in parts if part is not None), None)
            if good is None:
                if sites:
                    raise
                return rows.new_full((len(rows),), torch.nan), {}, {}
        return _merged([_like(good) if part is None else part for part in parts], torch.cat)

    def _apart(
        self, rows: Tensor, subsample: Mapping[str, Tensor], how: Way, sites: frozenset[str]
    ) -> list[_Outputs | None]:
        """Evaluate in halves of halves; None for each row at which the model has no value."""
        parts: list[_Outputs | None] = []
        for half in rows.chunk(2) if len(rows) > 1 else ():
            try:
                parts.append(self._together(half, subsample, how, sites))
            except torch.linalg.LinAlgError:
                parts += self._apart(half, subsample, how, sites)
        return parts or [None]

    def _together(
        self, rows: Tensor, subsample: Mapping[str, Tensor], how: Way, sites: frozenset[str]
    ) -> _Outputs:
        run = self._run
        # The model was run once with the user's validation; its checks cost and break vmap.
        with pyro.validation_enabled(False):
            if how == "plate":
                log_p, deterministic, likelihood = run.plate(rows, subsample, sites)
                return log_p.expand(len(rows)), deterministic, likelihood
            if how == "vmap":
                run.under_vmap = True
                try:
                    return torch.vmap(lambda row: run.scalar(row, subsample, sites))(rows)
                finally:
                    run.under_vmap = False
            parts = [run.scalar(row, subsample, sites) for row in rows]
        return _merged(parts, torch.stack)

    # ------------------------------------------------------------------------------- set-up

    def _prototype(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Trace, frozenset[str]]:
        """Run the model once without enumeration, for its plates and its discrete sites."""
        values, _ = self.latent.constrain(self.latent.init_loc)
        with poutine.block(), quiet():
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
        enumerated = frozenset(
            name
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and site["infer"].get("enumerate") == "parallel"
        )
        return trace, enumerated

    @staticmethod
    def _nesting(trace: Trace) -> int:
        # Batch dimensions without a plate count as well, or particles would collide with them.
        sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        dims = [-f.dim for site in sites for f in site["cond_indep_stack"] if f.vectorized]
        dims += [len(site["fn"].batch_shape) for site in sites if not site_is_subsample(site)]
        return max(dims, default=0)

    def _check_model(self, subsample: Mapping[str, Tensor]) -> Trace:
        """Run the model alone, with the user's own validation, and refuse what cannot be fitted."""
        run, latent = self._run, self.latent
        buffers = buffers_of(run.model)
        with quiet():
            values, _ = latent.constrain(latent.init_loc)
            first, second = run.trace(values, subsample), run.trace(values, subsample)
        check_same_numbers(first, second)
        check_buffers(buffers)
        if self.enumerated:
            with pyro.validation_enabled(False):
                check_discrete_plates(run, values, subsample)
            run.check_scales(first)
        with quiet():
            log_p = run.scalar(latent.init_loc, subsample)[0]
        bad = [] if bool(torch.isfinite(log_p)) else nonfinite_sites(first)
        check_finite(
            first, log_p, self.nonfinite_row(latent.init_loc, subsample, bad[0]) if bad else ""
        )
        with pyro.validation_enabled(False):
            traces = [first]
            for z in self.points(3):
                values, _ = latent.constrain(z)
                traces.append(run.trace(values, subsample))
                check_structure(traces[-1], latent, self.enumerated, self.max_plate_nesting)
        check_dependence(run, latent, traces, subsample)
        return first

    def points(self, count: int) -> Tensor:
        """Return points near the start and far, ``(count, D)``: the same whatever the fit's seed.

        A model is refused, and its particles evaluated one way or another, by what it is.
        """
        loc = self.latent.init_loc
        noise = torch.randn(count, self.latent.dim, generator=stream(0, "log joint")).to(loc)
        away = torch.linspace(0.1, 1.5, count).to(loc).unsqueeze(-1) * noise
        return torch.stack([self._scorable(loc, row) for row in away])

    def _scorable(self, loc: Tensor, away: Tensor) -> Tensor:
        """Point ``loc + away``, pulled towards the start until the model can be scored there."""
        subsample = self.draw_subsample(stream(0, "log joint", "subsample", device=loc.device))
        for _ in range(MODELS.pulls):
            try:
                with pyro.validation_enabled(False):
                    if bool(torch.isfinite(self._run.scalar(loc + away, subsample)[0])):
                        break
            except ModelError:
                raise
            except (RuntimeError, ValueError, ArithmeticError, AssertionError):
                pass  # an integrator or a factorisation that fails out there, which says nothing
            away = away / 4
        return loc + away

    def _choose(
        self, way: Way | None, subsample: Mapping[str, Tensor], sites: frozenset[str] = NO_SITES
    ) -> tuple[Way, str]:
        """Find the first way that agrees with the model run alone, and say why not the others."""
        points = self.points(self._count)
        expected = self._evaluate(points, subsample, "loop", sites)
        reasons: list[str] = []
        for candidate in _WAYS if way is None else (way,):
            if candidate == "loop":
                break
            try:
                found = self._evaluate(points, subsample, candidate, sites)
                problem = _disagreement(found, expected, candidate)
            except Exception as error:  # a model may fail in any way when it is batched
                lines = str(error).strip().splitlines() or [type(error).__name__]
                problem = f"{candidate}: {type(error).__name__}: {lines[0][:200]}"
            if problem is None:
                text = "agrees with the model run for one particle at a time"
                return candidate, "; ".join([*reasons, f"{candidate}: {text}"])
            reasons.append(problem)
        if way not in (None, "loop"):
            raise ModelError(f"The model cannot be run that way: {'; '.join(reasons)}.")
        return "loop", "; ".join([*reasons, "loop: one particle at a time"])


def _like(part: _Outputs) -> _Outputs:
    """Outputs of one row without a value: NaN, in the shapes of another part's rows."""
    log_p, *others = part

    def empty(value: Tensor) -> Tensor:
        row = value[:1].detach()
        return torch.full_like(row, torch.nan) if row.is_floating_point() else row

    deterministic, likelihood = ({n: empty(v) for n, v in one.items()} for one in others)
    return empty(log_p), deterministic, likelihood


def _merged(parts: Sequence[_Outputs], join: Callable[[list[Tensor]], Tensor]) -> _Outputs:
    """Put the outputs of several runs together."""
    first = parts[0]
    return (
        join([part[0] for part in parts]),
        {name: join([part[1][name] for part in parts]) for name in first[1]},
        {name: join([part[2][name] for part in parts]) for name in first[2]},
    )


def _axes(site: Mapping[str, Any]) -> set[int]:
    """Lengths of the axes of a node's value."""
    return set(site["value"].shape) if torch.is_tensor(site.get("value")) else set()


def _disagreement(
    found: _Outputs,
    expected: _Outputs,
    way: str,
) -> str | None:
    """Say where two evaluations differ by more than rounding, or None."""
    tolerance = 1e-3 if expected[0].dtype == torch.float32 else 1e-8
    pairs = [("the log joint", found[0], expected[0])]
    for mine, theirs in zip(found[1:], expected[1:]):
        pairs += [(f"site {name!r}", mine[name], theirs[name]) for name in theirs]
    for name, one, other in pairs:
        if one.shape != other.shape:
            return f"{way}: {name} has shape {tuple(one.shape)}, not {tuple(other.shape)}"
        size = torch.where(torch.isfinite(other), other.abs(), torch.zeros_like(other))
        scale = tolerance * (1 + (size.max() if size.numel() else 0))
        if not torch.allclose(one, other, rtol=tolerance, atol=float(scale) * 0.1, equal_nan=True):
            worst = (one - other).abs().nan_to_num(nan=torch.inf).argmax()
            one_, other_ = float(one.reshape(-1)[worst]), float(other.reshape(-1)[worst])
            return f"{way}: gives {one_:.6g} for {name}, not {other_:.6g}"
    return None
