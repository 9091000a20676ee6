"""A Pyro autoguide from a map of one unconstrained vector: all that is not the flow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import AutoGuide, prototype_hide_fn
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._compat import started
from pyro_nfvi._eval_mode import fit_pass, scoring
from pyro_nfvi._pyro_model.constraints import bijection, inside
from pyro_nfvi._pyro_model.initial_point_search import find_start
from pyro_nfvi._pyro_model.initial_values import StartMessenger, feasible
from pyro_nfvi._pyro_model.latent_space import LatentSpace, is_discrete, is_point_mass, whole_value
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._pyro_model.start_fault import StartFault, start_fault
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._user_warning import warn
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError, ModelWarning, NotSetUpError, OptionError, ParamStoreError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides import _conditional  # noqa: F401  lets Pyro condition flows
from pyro_nfvi.guides._flow_posterior import BaseNoise, FlowPosterior
from pyro_nfvi.guides._gradient_check import watch_gradient
from pyro_nfvi.guides._guide_draws import chunk_rows, deterministic_sites, draws_shape
from pyro_nfvi.guides._param_guard import ParamGuard
from pyro_nfvi.guides._quantiles import ONE_SD, base_points, pushed_quantiles
from pyro_nfvi.guides._structure_watch import StructureWatch

if TYPE_CHECKING:
    from pyro_nfvi.guides._gathered_rows import GatheredRows


def _is_enumerated(site: Mapping[str, Any]) -> bool:
    marked = bool(site["infer"].get("enumerate"))
    return marked and bool(getattr(site["fn"], "has_enumerate_support", False))


class VectorGuide(AutoContinuous):
    """Set-up, drawing, scoring and summaries of a guide that maps base noise to a vector.

    A guide of your own makes its parameters in ``_build``, when ``self.latent`` is known, and
    returns the map from base noise to the unconstrained vector in ``transport``.

    Args:
        model: A Pyro model.
        init_loc_fn: Pyro's per-site initialisation.
        base: Distribution of the noise over vectors; the standard normal if None.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_nfvi.flows import LowerTriangular
        >>> from pyro_nfvi.guides import VectorGuide
        >>> class AutoTriangular(VectorGuide):
        ...     def _build(self):
        ...         self.flow = LowerTriangular(self.latent.dim)
        ...     def transport(self):
        ...         return self.flow
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))
        >>> guide = AutoTriangular(model)
        >>> loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
        >>> guide.sample_posterior(5)["z"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = init_to_median,
        base: Distribution | None = None,
    ) -> None:
        # AutoContinuous would wrap the model to initialise it; the user's own is kept, and
        # wrapped only while the prototype is made.
        if not callable(init_loc_fn):
            raise OptionError(
                f"{type(self).__name__} needs init_loc_fn to be a function of a site, such as "
                f"pyro.infer.autoguide.init_to_median; got {init_loc_fn!r}."
            )
        AutoGuide.__init__(self, model)
        self._init_loc_fn: Callable[..., Any] | None = init_loc_fn
        self._base = base
        self._watch = StructureWatch()
        #: Trained parameters of the model, set by a fit; beside others the guide refuses to run.
        self.param_guard: ParamGuard | None = None

    def __repr__(self) -> str:
        name = type(self).__name__
        if not self.is_set_up:
            return f"{name}(not set up yet)"
        count = sum(parameter.numel() for parameter in self.parameters())
        parts = ", ".join(f"{role}={part!r}" for role, part in self._flows_shown())
        return f"{name}({self.latent.dim} latents, {count} parameters{parts and ', ' + parts})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        parts = [(role, repr(part)) for role, part in self._flows_shown()]
        if not self.is_set_up:
            return _html.card(repr(self))
        sites = [(site.name, site.stop - site.start) for site in self.latent.records]
        tables = (
            _html.table(("part", "flow"), parts) if parts else "",
            _html.table(("site", "numbers"), _html.shortened(sites)),
        )
        return _html.card(f"{type(self).__name__} of {self.latent.dim} latents", *tables)

    def _flows_shown(self) -> list[tuple[str, Flow]]:
        return [(name, part) for name, part in self.named_children() if isinstance(part, Flow)]

    def _build(self) -> None:
        """Make the parameters, from ``self.latent``."""
        raise NotImplementedError

    def transport(self) -> Flow:
        """Return the whole map, from base noise to the unconstrained vector, for one call."""
        raise NotImplementedError

    def _like(self) -> Tensor:
        """Return a vector of size D with the parameters' dtype and device."""
        own = next((p for p in self.parameters() if p.is_floating_point()), self.latent.init_loc)
        return own.new_zeros(self.latent_dim)

    def _noise(self) -> Distribution | Base | None:
        """Return where the noise comes from; None is the standard normal."""
        return self._base

    def _levels(self, levels: Tensor) -> TensorPair:
        """Return quantiles of the unconstrained coordinates: ``(D,)`` plus ``(q, D)``.

        In two parts, so that a spread far below the location keeps its digits; here the first
        part is 0.
        """
        points = base_points(self._like(), self._noise())
        return torch.zeros_like(points[0]), pushed_quantiles(points, None, self.transport(), levels)

    # ------------------------------------------------------------------------------- set-up

    @property
    def is_set_up(self) -> bool:
        """True if the parameters exist."""
        return self.prototype_trace is not None

    @takes_turn
    def setup(self, *args: Any, **kwargs: Any) -> VectorGuide:
        """Build all parameters from one run of the model with its arguments; return the guide.

        The first call of the guide does it too; doing it early gives ``torch`` optimisers and
        ``state_dict`` something to hold. A second call only checks that the model still fits.
        """
        with self._pyro_context:
            self._ready(args, kwargs)
        return self

    def _ready(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.is_set_up:
            self._setup_prototype(*args, **kwargs)
        elif not torch.jit.is_tracing():
            self._check_structure(args, kwargs)

    @staticmethod
    def _prototype_hide_fn(msg: dict[str, Any]) -> bool:
        # Discrete sites marked for enumeration belong to the enumerating ELBO, Deltas to the model.
        return prototype_hide_fn(msg) or _is_enumerated(msg) or is_point_mass(msg)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._init_loc_fn is None or self._model is None:
            raise NotSetUpError("A guide loaded from a file cannot be set up again: build it anew.")
        try:
            # What is made under inference mode could never be trained.
            with torch.inference_mode(mode=False):
                self._make(self._init_loc_fn, args, kwargs)
        except BaseException:
            # Not half set up: the next call starts over.
            self.prototype_trace = None
            raise
        self._watch.start(args, kwargs)

    def _make(
        self, init_loc_fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        def attempt(init: Callable[..., Any]) -> StartFault | None:
            self._trace_prototype(init, *args, **kwargs)
            for _, site in self.prototype_trace.iter_stochastic_nodes():
                site["value"] = whole_value(site)
            self.latent = self._space_of(self.prototype_trace)
            return self._infinite() or start_fault(self.model, args, kwargs, self.latent)

        kind, fault = find_start(attempt, init_loc_fn)
        if fault is not None and init_loc_fn is not init_to_median:
            warn(
                f"{type(self).__name__} cannot start at the point of init_loc_fn: {fault}. It "
                f"starts at a point of another kind: {kind}.",
                ModelWarning,
            )
        self._unconstrained_shapes = {
            name: torch.Size(site.unconstrained_shape) for name, site in self.latent.sites.items()
        }
        self._cond_indep_stacks = {
            name: site.cond_indep_stack for name, site in self.latent.sites.items()
        }
        self.latent_dim = self.latent.dim
        self._build()

    def _space_of(self, trace: Trace) -> LatentSpace:
        """Read the latent space from a prototype."""
        return LatentSpace.from_trace(trace)

    def _trace_prototype(self, init_loc_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        def start(site: dict[str, Any]) -> Any:
            # Pyro's init functions refuse discrete sites, marked for enumeration or not; those that
            # are not are refused with the cure once the latent space is made.
            if _is_enumerated(site) or is_discrete(site["fn"]) or is_point_mass(site):
                return site["fn"].sample()
            try:
                return started(site["fn"], init_loc_fn(site))
            except NotImplementedError:  # an improper prior, from which nothing can be drawn
                return feasible(site)

        model = self._model
        self._model = (StartMessenger(start)(model[0]),)
        try:
            try:
                # Without a graph, so that the guide copies and pickles.
                with torch.no_grad():
                    super(AutoContinuous, self)._setup_prototype(*args, **kwargs)
            except RuntimeError:
                # A model that differentiates inside itself; other errors come again.
                super(AutoContinuous, self)._setup_prototype(*args, **kwargs)
        finally:
            self._model = model

    def _infinite(self) -> StartFault | None:
        """The fault of a prototype of which a value is not finite; None if all are."""
        # The latent space moves an infinite value to the largest number, which is no start either.
        for name in self.latent.sites:
            if not self.prototype_trace.nodes[name]["value"].isfinite().all():
                return StartFault(name, f"the initial value of {name!r} is not finite")
        bad = ~self.latent.init_loc.isfinite()
        if not bad.any():
            return None
        name = self.latent.at(int(bad.nonzero()[0]))
        reason = f"the initial value of {name!r} is not finite in the unconstrained space"
        return StartFault(name.split("[")[0], reason)

    def _free_plates(self) -> frozenset[str]:
        """Return the plates that may have other numbers of rows in each call."""
        return frozenset()

    def _check_structure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._model is None:
            return
        changed = self._watch.changed(
            self.model, self.latent, self._prototype_hide_fn, args, kwargs, self._free_plates()
        )
        if changed is not None:
            raise ModelError(
                f"{type(self).__name__} was built for another structure of the model: {changed}. "
                "A guide fits one structure: draw the same sites in every run, or build a new "
                "guide for these arguments."
            )

    def _require_setup(self) -> None:
        if not self.is_set_up:
            raise NotSetUpError(
                f"{type(self).__name__} has no parameters yet: call guide.setup(*args, **kwargs) "
                "with the model's arguments, or run a step of SVI."
            )

    def density(self) -> FlowDensity:
        """Return the density of the unconstrained vector, for one call."""
        return FlowDensity(self.transport(), self._noise())

    def density_at(self, rows: Mapping[str, Tensor]) -> FlowDensity:
        """Return the density of the vector that a mini-batch has, for one call.

        Args:
            rows: Rows of the plates that subsample. A guide without rows of its own has the same
                vector in all mini-batches.
        """
        return self.density()

    def gathered(self, rows: Mapping[str, Tensor]) -> GatheredRows | None:
        """Return what a mini-batch sees of tables with a row for each row of a plate.

        Args:
            rows: Rows of the plates that subsample.

        Returns:
            None where all of the guide is seen by all mini-batches.
        """
        del rows
        return None

    def get_base_dist(self) -> Distribution:
        self._require_setup()
        noise = self._noise()
        if noise is not None:
            return BaseNoise(noise) if isinstance(noise, Base) else noise
        zeros = torch.zeros_like(self._like())
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        return self.transport().as_transform()

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowPosterior:
        """Return the distribution of the unconstrained vector, for one call.

        Ask again after a step of an optimiser: this one keeps the scale of its time.
        """
        posterior = FlowPosterior(self.get_base_dist(), [self.get_transform()])
        posterior._loc_scale = self._loc_scale
        return posterior

    # --------------------------------------------------------------------------- the guide

    @takes_turn
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> TensorDict:
        """Draw all latent sites; arguments as the model's."""
        if self.param_guard is not None:
            self.param_guard.check(type(self).__name__)
        self._ready(args, kwargs)
        # Parts of a user's own are in eval mode: a draw and its score are of one density.
        with fit_pass(self) if torch.is_grad_enabled() else scoring(self):
            return self._drawn(args, kwargs)

    @full_precision
    def _drawn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorDict:
        latent = self.sample_latent(*args, **kwargs)
        model = None if self._model is None else self.model
        watch_gradient(latent, self.latent, model, args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        scored = poutine.get_mask() is not False
        drawn = {}
        for site, u in self._unpack_latent(latent):
            name, event_dim = site["name"], site["fn"].event_dim
            support = self.latent.sites[name].support
            transform = bijection(support)
            value = transform(u)
            log_density: Tensor | float = 0.0
            if scored:
                ladj = transform.log_abs_det_jacobian(u, value)
                batch_dim = value.dim() - event_dim
                log_density = -ladj.flatten(batch_dim).sum(-1) if ladj.dim() > batch_dim else -ladj
            value = inside(support, value)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                point = dist.Delta(value, log_density=log_density, event_dim=event_dim)
                drawn[name] = pyro.sample(name, point)
        return drawn

    @takes_turn
    @full_precision
    @torch.no_grad()
    def sample_posterior(
        self,
        num_samples: int | Sequence[int] = 1000,
        *args: Any,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> TensorDict:
        """Draw from the posterior, in chunks.

        Args:
            num_samples: Number of draws, or a shape of them.
            *args: The model's arguments (for deterministic sites, or before set-up).
            deterministic: Run the model at every draw and add its deterministic sites.
            **kwargs: The model's keyword arguments.

        Returns:
            Each site's draws ``(*num_samples, *site shape)``.
        """
        if not self.is_set_up:
            self.setup(*args, **kwargs)
        shape = draws_shape(num_samples)
        density = self.density()
        count = math.prod(shape)
        rows = chunk_rows(self.latent_dim)
        parts = []
        for start in range(0, count, rows):
            z, _ = density.push(density.sample_base(min(rows, count - start)))
            parts.append(self.latent.constrain(z)[0])
        if not parts:  # torch's bijections do not take empty batches
            like = self._like()
            parts = [
                {name: like.new_zeros(0, *site.shape) for name, site in self.latent.sites.items()}
            ]
        draws = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if deterministic:
            if self._model is None:
                raise NotSetUpError(
                    "A guide loaded from a pickle has no model: deterministic sites cannot be made."
                )
            if self.param_guard is not None:
                self.param_guard.check(type(self).__name__)
            draws |= deterministic_sites(self.model, draws, args, kwargs)
        return {name: value.reshape(shape + value.shape[1:]) for name, value in draws.items()}

    @takes_turn
    @full_precision
    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Score constrained values: ``(*b, *site shape)`` each -> ``(*b,)`` in nats.

        The density is in the sites' own measure (Pyro's, simplex included), so that the model's
        log joint minus this is the log importance weight.
        """
        self._require_setup()
        z, ladj = self.latent.unconstrain(values)
        return self.density().log_prob(z.to(self._like())) + ladj

    # ------------------------------------------------------------------------- summaries

    @torch.no_grad()
    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._require_setup()
        levels = torch.tensor(ONE_SD, dtype=torch.float64, device=self._like().device)
        with scoring(self):
            loc, (lower, median, upper) = self._levels(levels)
        return loc + median, (upper - lower) / 2

    def _summary_setup(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.is_set_up:
            self.setup(*args, **kwargs)

    @takes_turn
    @full_precision
    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> TensorDict:
        """Return quantiles of each site, ``(number of levels, *site shape)``.

        Per unconstrained coordinate, from 4097 fixed, symmetric base points, then constrained.
        """
        self._summary_setup(args, kwargs)
        levels = torch.as_tensor(quantiles, dtype=torch.float64, device=self._like().device)
        if levels.dim() != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise OptionError(f"quantiles needs a list of levels in [0, 1]; got {quantiles!r}.")
        with scoring(self):
            loc, offsets = self._levels(levels)
        return self.latent.constrain(loc + offsets)[0]

    def median(self, *args: Any, **kwargs: Any) -> TensorDict:
        """Return the median of each site: the 0.5 quantile; at the start the initial location."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @takes_turn
    @full_precision
    @torch.no_grad()
    def mean(self, *args: Any, **kwargs: Any) -> TensorDict:
        """Return the posterior mean of each constrained site, over the fixed base points."""
        self._summary_setup(args, kwargs)
        transport, points = self.transport(), base_points(self._like(), self._noise())
        totals: TensorDict = {}
        for part in points.split(chunk_rows(self.latent_dim)):
            with scoring(self):
                z = transport(part)[0]
            for name, value in self.latent.constrain(z)[0].items():
                totals[name] = totals.get(name, 0.0) + value.sum(0)
        return {name: total / len(points) for name, total in totals.items()}

    # ------------------------------------------------------------------ copies and state

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own version takes the model away from the original. What belongs to the user
        # (model, callables) stays out of the file; so do the weak references that the param store
        # hangs on parameters, and makes anew when it reads them.
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)
        state = dict(self.__dict__)
        state.update(_model=None, master=None, _watch=StructureWatch())
        if self.is_set_up:
            state.update(_init_loc_fn=None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorGuide:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        clone.__dict__["_model"] = self._model
        return clone

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # .to(), .double() and the like: values to score are brought to the same dtype and device.
        found = super()._apply(fn, *args, **kwargs)
        if self.is_set_up:
            self.latent = replace(self.latent, init_loc=fn(self.latent.init_loc))
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters; the guide has to be set up, and the sizes have to agree."""
        self._require_setup()
        before = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            # torch has copied what did fit: no mixture of two fits is left behind.
            super().load_state_dict(before)
            raise ParamStoreError(
                f"The saved parameters do not fit this {type(self).__name__} with "
                f"{self.latent_dim} latents. Build it with the same model, data sizes and flow "
                f"options as the saved one. {error}"
            ) from error
