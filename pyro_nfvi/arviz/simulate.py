"""New data from the model, at draws of its latents or from the prior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.logjoint.run import SetSubsample, is_deterministic

__all__ = ["Simulator", "is_factor"]

_PARTICLES = "_nfvi_draws"


class _DrawAnew(Messenger):
    """Observed sites are sampled; deterministic ones and factors stay what they are."""

    def _pyro_sample(self, msg: Message) -> None:
        kept = is_deterministic(msg) or is_factor(msg)
        if msg["is_observed"] and not kept:
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a node is a ``pyro.factor``: a term of the density without a value."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Unit)


class Simulator:
    """Runs a model forward with its observed sites drawn anew.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        subsample: Indices for the plates that subsample.
        nesting: Dimensions, from the right, that plates and batch shapes of the model take.
        together: Whether the model has been seen to run right with all draws in one plate;
            otherwise it is run draw by draw.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        subsample: Mapping[str, torch.Tensor],
        *,
        nesting: int,
        together: bool,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.subsample, self.nesting = subsample, nesting
        #: Shapes of the values of one run, by site.
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._together = together

    def run(
        self, count: int, values: Mapping[str, torch.Tensor], wanted: Collection[str], rows: int
    ) -> Iterator[TensorDict]:
        """Yield the wanted sites' values of ``count`` runs, at most ``rows`` at a time.

        Args:
            count: Number of runs.
            values: Values ``(count, *shape)`` at which latent sites are held; none for the prior.
            wanted: Names of the sites to return, as ``(rows, *shape)``.
            rows: How many runs to make together.
        """
        if not self.shapes:
            first = self._trace({name: value[0] for name, value in values.items()})
            self.shapes = {
                name: tuple(site["value"].shape)
                for name, site in first.nodes.items()
                if site["type"] == "sample"
                and not site_is_subsample(site)
                and torch.is_tensor(site["value"])
            }
        rows = max(1, rows)
        for start in range(0, count, rows):
            part = {name: value[start : start + rows] for name, value in values.items()}
            yield self._chunk(min(rows, count - start), part, wanted)

    def _chunk(self, count: int, values: TensorDict, wanted: Collection[str]) -> TensorDict:
        if self._together:
            try:
                return self._at_once(count, values, wanted)
            except Exception:  # a model may fail in any way when batched; alone it need not
                self._together = False
        runs = [self._trace({n: v[i] for n, v in values.items()}) for i in range(count)]
        return {name: torch.stack([run.nodes[name]["value"] for run in runs]) for name in wanted}

    def _at_once(self, count: int, values: TensorDict, wanted: Collection[str]) -> TensorDict:
        held = {}
        for name, value in values.items():
            batch_dims = self._batch_dims[name]
            ones = (1,) * (self.nesting - batch_dims)
            held[name] = value.reshape((count, *ones, *value.shape[1:]))
        trace = self._trace(held, count)
        found = {}
        for name in wanted:
            value, shape = trace.nodes[name]["value"], self.shapes[name]
            if value.numel() == count * torch.Size(shape).numel():
                found[name] = value.reshape((count, *shape))
            else:
                found[name] = value.expand((count, *shape))
        return found

    def _trace(self, values: Mapping[str, torch.Tensor], count: int | None = None) -> Trace:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(pyro.validation_enabled(False))
            # Handlers of the caller (a scale, a plate) are no part of this model.
            stack.enter_context(poutine.block())
            stack.enter_context(SetSubsample(self.subsample))
            if count is not None:
                stack.enter_context(pyro.plate(_PARTICLES, count, dim=-self.nesting - 1))
            model = poutine.condition(_DrawAnew()(self.model), data=dict(values))
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
        if count is None:
            self._batch_dims = {
                name: torch.as_tensor(site["value"]).dim() - site["fn"].event_dim
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and not site_is_subsample(site)
            }
        return trace
