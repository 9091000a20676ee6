"""Draws from whatever a user may hand over: a fit, a guide, an MCMC run, a dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._vector_guide import VectorGuide


@dataclass
class Draws:
    """Draws of the latent sites, and where they come from.

    Attributes:
        values: ``site -> (chain, draw, *shape)``, constrained.
        log_q: Log density of the approximation at each draw in the sites' own measure, in nats,
            ``(chain, draw)``; None where there is none.
        model: The model, if it is known, with ``args`` and ``kwargs``.
        stats: Further statistics per draw, ``(chain, draw)``.
        attrs: What else is worth keeping of the source.
    """

    values: TensorDict
    log_q: Tensor | None = None
    model: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    stats: TensorDict = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


def read(
    source: Any,
    num_samples: int,
    *,
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Draws:
    """Draw from a source, or take the draws that it holds.

    Raises:
        OptionError: The source is none of those that can be converted.
    """
    if isinstance(source, Mapping):
        draws = _from_dict(source)
    elif isinstance(source, VectorGuide):
        draws = _from_flow(source, num_samples, args, kwargs)
    elif isinstance(source, AutoGuide):
        draws = _from_guide(source, num_samples, args, kwargs)
    elif hasattr(source, "get_samples") and hasattr(source, "kernel"):
        draws = _from_mcmc(source)
    elif isinstance(getattr(source, "guide", None), VectorGuide):
        draws = _from_fit(source, num_samples, args, kwargs)
    elif isinstance(getattr(source, "density", None), FlowDensity) and hasattr(source, "latent"):
        draws = _from_density(source, num_samples)
    else:
        raise OptionError(
            "to_arviz takes a fit, a guide, a Pyro MCMC run, a dict of draws, or a list of these; "
            f"got {type(source).__name__}. The draws of anything else can be passed as a dict "
            "{site: (draws, *shape)}."
        )
    if model is not None:
        draws.model = model
    if args or kwargs:
        draws.args, draws.kwargs = args, kwargs
    return draws


def _from_dict(source: Mapping[str, Any]) -> Draws:
    values = {}
    for name, value in source.items():
        tensor = value if torch.is_tensor(value) else torch.as_tensor(np.asarray(value))
        if tensor.dim() == 0:
            raise OptionError(
                f"The draws of {name!r} need a leading axis of draws: (draws, *shape); "
                "got a number."
            )
        values[str(name)] = tensor.detach()[None]
    if not values:
        raise OptionError("to_arviz was given an empty dict of draws.")
    lengths = {name: value.shape[1] for name, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise OptionError(f"Sites need equally many draws, (draws, *shape); got {lengths}.")
    return Draws(values, attrs={"source": "draws"})


def _from_flow(
    guide: VectorGuide, num_samples: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Draws:
    if not guide.is_set_up:
        guide.setup(*args, **kwargs)
    if guide.param_guard is not None:
        with torch.no_grad():
            guide.param_guard.check(type(guide).__name__)
    density, parts, scores = guide.density(), [], []
    with torch.no_grad():
        for start in range(0, num_samples, RECIPE.rows_through_flow):
            eps = density.sample_base(min(RECIPE.rows_through_flow, num_samples - start))
            z, log_q = density.push(eps)
            values, ladj = guide.latent.constrain(z)
            parts.append(values)
            scores.append(log_q - ladj)
    return Draws(
        {name: torch.cat([part[name] for part in parts])[None] for name in parts[0]},
        torch.cat(scores)[None],
        guide.model if guide._model is not None else None,
        args,
        kwargs,
        attrs={"source": type(guide).__name__},
    )


def _from_guide(
    guide: AutoGuide, num_samples: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Draws:
    """Run any other guide of Pyro's once per draw."""
    values: dict[str, list[Tensor]] = {}
    scores = []
    with torch.no_grad(), poutine.block():
        for _ in range(num_samples):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            scores.append(torch.as_tensor(trace.log_prob_sum()))
            for name, site in trace.nodes.items():
                latent = site["type"] == "sample" and not site["infer"].get("is_auxiliary")
                if latent and name in guide.prototype_trace.nodes:
                    values.setdefault(name, []).append(site["value"])
    return Draws(
        {name: torch.stack(value)[None] for name, value in values.items()},
        # A point has no density.
        None if isinstance(guide, AutoDelta) else torch.stack(scores)[None],
        guide.model,
        args,
        kwargs,
        attrs={"source": type(guide).__name__},
    )


def _from_mcmc(mcmc: Any) -> Draws:
    values = {name: value.detach() for name, value in mcmc.get_samples(group_by_chain=True).items()}
    chains, draws = next(iter(values.values())).shape[:2]
    stats = dict(getattr(mcmc, "sample_stats", None) or _divergences(mcmc, chains, draws))
    kernel = mcmc.kernel
    return Draws(
        values,
        None,
        getattr(kernel, "model", None),
        getattr(mcmc, "_args", None) or (),
        getattr(mcmc, "_kwargs", None) or {},
        stats,
        {"source": getattr(kernel, "name", type(kernel).__name__) if kernel else "MCMC"},
    )


def _divergences(mcmc: Any, chains: int, draws: int) -> TensorDict:
    """Read where transitions of Pyro's MCMC diverged."""
    diagnostics = getattr(mcmc, "_diagnostics", None) or []
    if len(diagnostics) != chains or not all(d and "divergences" in d for d in diagnostics):
        return {}
    diverging = torch.zeros(chains, draws, dtype=torch.bool)
    for chain, found in enumerate(diagnostics):
        where = [int(index) for index in found["divergences"]]
        diverging[chain, [index for index in where if 0 <= index < draws]] = True
    return {"diverging": diverging}


def _from_density(fit: Any, num_samples: int) -> Draws:
    """Draw from an amortised posterior of a model without a density."""
    with torch.no_grad():
        z, log_q = fit.density.rsample_and_log_prob((num_samples,))
        values, ladj = fit.latent.constrain(z)
    attrs = {"source": "amortised", "verdict": str(fit.verdict)}
    chains = {name: value[None] for name, value in values.items()}
    return Draws(chains, (log_q - ladj)[None], attrs=attrs)


def _from_fit(
    fit: Any, num_samples: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Draws:
    draws = _from_flow(fit.guide, num_samples, args, kwargs)
    draws.model = getattr(fit, "model", None) or draws.model
    draws.args = tuple(getattr(fit, "args", None) or ())
    draws.kwargs = dict(getattr(fit, "kwargs", None) or {})
    draws.attrs["source"] = f"NFVI, {draws.attrs['source']}"
    verdict = getattr(fit, "verdict", None)
    if verdict is not None:
        draws.attrs["verdict"] = str(verdict)
    return draws
