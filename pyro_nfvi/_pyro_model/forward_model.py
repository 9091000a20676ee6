"""``ForwardModel``: new data from the model, at draws of its latents or from the prior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._pyro_model.model_run import SetSubsample, is_deterministic
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError

_PARTICLES = "_nfvi_draws"
Way: TypeAlias = Literal["plate", "vmap", "loop"]
_WAYS: tuple[Way, ...] = ("plate", "vmap", "loop")
#: Values of all sites of some runs, and their log densities, by site.
_Runs: TypeAlias = "tuple[TensorDict, TensorDict]"


class DrawAnew(Messenger):
    """Samples observed sites; deterministic ones and factors stay what they are.

    Args:
        names: Sites to draw; all that are observed by default.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Message) -> None:
        if self.names is not None and msg["name"] not in self.names:
            return
        kept = is_deterministic(msg) or is_factor(msg)
        if msg["is_observed"] and not kept:
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False


class Hold(Messenger):
    """Holds sites at values, and refuses a site that has another shape than its value.

    Args:
        values: Values by site, of one run of the model.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if name not in self.values or msg["is_observed"]:
            return
        value, fn = self.values[name], msg["fn"]
        shape = tuple(fn.shape()) if hasattr(fn, "shape") else tuple(value.shape)
        if shape != tuple(value.shape):
            plates = [frame.name for frame in msg["cond_indep_stack"] if frame.vectorized]
            place = f" in the plate {', '.join(map(repr, plates))}" if plates else ""
            raise ModelError(
                f"The latent site {name!r}{place} has shape {tuple(value.shape)} in the draws, and "
                f"these arguments ask for {shape}: the draws say nothing of new entries. Draw it "
                f"from its prior given the other latents, predict(..., from_prior=[{name!r}]), or "
                "give arguments of the size that was fitted."
            )
        msg["value"], msg["done"] = value, True


def is_factor(site: Mapping[str, Any]) -> bool:
    """Tell whether a node is a ``pyro.factor``: a term of the density without a value."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Unit)


class ForwardModel:
    """A model with its arguments, run forward with its observed sites drawn anew.

    Draws are made together, in a plate left of all plates of the model, else by ``torch.vmap``,
    else one by one. What came together is compared with the model run alone: some draws of the
    first chunk and one of each later chunk are held at all values that were drawn, and every log
    density and deterministic value has to be the same. A way that fails is not used again.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        subsample: Indices for the plates that subsample.
        ways: Ways of running draws together that may be tried.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        subsample: Mapping[str, Tensor],
        *,
        ways: Collection[Way] = _WAYS,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.subsample = subsample
        #: How draws are run together: the first of these that has not failed.
        self.ways = [way for way in _WAYS if way in ways and way != "loop"]
        #: A run for one draw; None before the first.
        self.prototype: Trace | None = None

    @property
    def how(self) -> Way:
        """The way in which draws are run."""
        return self.ways[0] if self.ways else "loop"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the values of one run, by site; empty before the first run."""
        return {name: tuple(site["value"].shape) for name, site in self._sites().items()}

    @property
    def size(self) -> int:
        """Numbers that one run holds; 0 before the first."""
        return sum(site["value"].numel() for site in self._sites().values())

    def start(self, values: Mapping[str, Tensor]) -> Trace:
        """Run the model for one draw (``values`` without an axis of draws), and keep the run.

        Raises:
            ModelError: A site has another shape than its value, or cannot be sampled.
        """
        self.prototype = self._trace(values)
        sites = [site for site in self.prototype.nodes.values() if site["type"] == "sample"]
        dims = [-f.dim for site in sites for f in site["cond_indep_stack"] if f.vectorized]
        dims += [len(site["fn"].batch_shape) for site in sites if not site_is_subsample(site)]
        #: Dimensions, from the right, that plates and batch shapes take.
        self.nesting = max(dims, default=0)
        self._deterministic = {n for n, site in self._sites().items() if is_deterministic(site)}
        self._batch_dims = {
            name: site["value"].dim() - site["fn"].event_dim for name, site in self._sites().items()
        }
        return self.prototype

    def run(
        self, count: int, values: Mapping[str, Tensor], wanted: Collection[str], rows: int
    ) -> Iterator[TensorDict]:
        """Yield the wanted sites' values of ``count`` runs, at most ``rows`` at a time.

        Args:
            count: Number of runs.
            values: Values ``(count, *shape)`` at which latent sites are held; none for the prior.
            wanted: Names of the sites to return, as ``(rows, *shape)``.
            rows: How many runs to make together.
        """
        if self.prototype is None:
            self.start({name: value[0] for name, value in values.items()})
        rows = max(1, rows)
        for begin in range(0, count, rows):
            part = {name: value[begin : begin + rows] for name, value in values.items()}
            length = min(rows, count - begin)
            found = self._chunk(length, part, first=begin == 0)
            yield {name: found[name] for name in wanted}

    def _chunk(self, count: int, values: TensorDict, *, first: bool) -> TensorDict:
        while self.ways and count > 1:
            try:
                found, log_probs = self._together(count, values)
                rows = {0, count // 2, count - 1} if first else {count - 1}
                if all(
                    self._same(found, log_probs, row)
                    for row in sorted(rows)[: MODELS.compared_draws]
                ):
                    return found
            except Exception:  # a model may fail in any way when batched; alone it need not
                pass
            self.ways = self.ways[1:]
        runs = [
            self._values(self._trace({n: v[i] for n, v in values.items()}), None)
            for i in range(count)
        ]
        return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}

    def _together(self, count: int, values: TensorDict) -> _Runs:
        """Make all runs at once, in the present way."""
        if self.how == "vmap":
            places = torch.arange(count)

            def one(_: Tensor, row: TensorDict) -> _Runs:
                trace = self._trace(row, under_vmap=True)
                return self._values(trace, None), self._log_probs(trace, None)

            return torch.vmap(one, randomness="different")(places, dict(values))
        held = {}
        for name, value in values.items():
            batch_dims = self._batch_dims.get(name)
            if batch_dims is None:  # the model has no such site with these arguments
                continue
            ones = (1,) * (self.nesting - batch_dims)
            held[name] = value.reshape((count, *ones, *value.shape[1:]))
        trace = self._trace(held, count)
        return self._values(trace, count), self._log_probs(trace, count)

    def _same(self, found: TensorDict, log_probs: TensorDict, row: int) -> bool:
        """Tell whether one of the draws equals a run of the model alone at its values."""
        trace = self._trace({name: value[row] for name, value in found.items()})
        alone, densities = self._values(trace, None), self._log_probs(trace, None)
        pairs = [(found[name][row], alone[name]) for name in self._sites()]
        pairs += [(log_probs[name][row], densities[name]) for name in densities]
        return all(_close(one, other) for one, other in pairs)

    def _sites(self, trace: Trace | None = None) -> dict[str, dict[str, Any]]:
        """The sites of a run that hold a value."""
        trace = self.prototype if trace is None else trace
        return {
            name: site
            for name, site in ({} if trace is None else trace.nodes).items()
            if site["type"] == "sample"
            and not site_is_subsample(site)
            and not is_factor(site)
            and torch.is_tensor(site["value"])
        }

    def _values(self, trace: Trace, count: int | None) -> TensorDict:
        """Values by site: of one run, or ``(count, *shape)`` of runs in a plate."""
        sites, shapes = self._sites(trace), self.shapes
        if count is None:
            return {name: sites[name]["value"] for name in shapes}
        found = {}
        for name, shape in shapes.items():
            value = sites[name]["value"]
            if value.numel() == count * torch.Size(shape).numel():
                found[name] = value.reshape((count, *shape))
            else:
                found[name] = value.expand((count, *shape))
        return found

    def _log_probs(self, trace: Trace, count: int | None) -> TensorDict:
        """Log density of every sampled site, summed over all but the draws."""
        found = {}
        for name, site in self._sites(trace).items():
            if name in self._deterministic:
                continue
            log_prob = site["fn"].log_prob(site["value"])
            lead = log_prob.dim() - self.nesting - 1
            if count is None:
                found[name] = log_prob.sum()
            elif lead < 0:
                found[name] = log_prob.sum().expand(count)
            elif lead == 0:
                found[name] = log_prob.reshape(len(log_prob), -1).sum(1).expand(count)
            else:
                raise ModelError(f"site {name!r} has dimensions left of all plates")
        return found

    def _trace(
        self,
        values: Mapping[str, Tensor],
        count: int | None = None,
        *,
        under_vmap: bool = False,
    ) -> Trace:
        held = poutine.condition if count is not None else _hold
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(pyro.validation_enabled(False))
            # Handlers of the caller (a scale, a plate) are no part of this model.
            stack.enter_context(poutine.block())
            stack.enter_context(SetSubsample(self.subsample))
            if count is not None:
                stack.enter_context(pyro.plate(_PARTICLES, count, dim=-self.nesting - 1))
            if under_vmap:
                stack.enter_context(_BySample())
            named = stack.enter_context(_Named())
            model = held(DrawAnew()(self.model), data=dict(values))
            try:
                return poutine.trace(model).get_trace(*self.args, **self.kwargs)
            except NotImplementedError as error:
                if named.site is None:
                    raise
                raise ModelError(
                    f"The site {named.site!r} cannot be drawn: its distribution "
                    f"{named.kind} has no sample(). Give it one, or compute predictions from the "
                    "draws of fit.sample()."
                ) from error


class _BySample(Messenger):
    """Draws by ``sample``: reparameterised draws of torch fill tensors in place, unlike in vmap."""

    def _pyro_sample(self, msg: Message) -> None:
        if not msg["done"] and msg["value"] is None and hasattr(msg["fn"], "sample"):
            msg["value"], msg["done"] = msg["fn"].sample(), True


class _Named(Messenger):
    """Remembers which site is being drawn, for errors that do not say it."""

    site: str | None = None
    kind = ""

    def _pyro_sample(self, msg: Message) -> None:
        drawn = not msg["done"] and msg["value"] is None
        self.site, self.kind = (str(msg["name"]), type(msg["fn"]).__name__) if drawn else (None, "")

    def _pyro_post_sample(self, msg: Message) -> None:
        self.site = None


def _hold(model: Callable[..., Any], data: Mapping[str, Tensor]) -> Callable[..., Any]:
    return Hold(data)(model)


def _close(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results are the same up to rounding."""
    if one.shape != other.shape:
        return False
    if not other.is_floating_point():
        return bool((one == other).all())
    tolerance = 1e-3 if other.dtype == torch.float32 else 1e-8
    size = torch.where(torch.isfinite(other), other.abs(), torch.zeros_like(other))
    scale = tolerance * (1 + (float(size.max()) if size.numel() else 0.0))
    return torch.allclose(one, other, rtol=tolerance, atol=0.1 * scale, equal_nan=True)
