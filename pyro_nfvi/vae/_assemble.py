"""Parts of a FlowVAE at construction: flow and prior built, outputs of the encoder checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_nfvi._autocast import lift
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import DataError, OptionError, ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._registry import make_flow
from pyro_nfvi.vae._bound_flow import amortize_linearly
from pyro_nfvi.vae._priors import MixturePrior, Prior


def plate(x: Tensor, num_data: int | None) -> Any:
    """The plate of the data: the rows of a mini-batch count ``num_data / B`` times."""
    size = len(x) if num_data is None else num_data
    if size < len(x):
        raise OptionError(f"num_data is the size of the data set, at least {len(x)}; got {size}.")
    rows = None if size == len(x) else torch.arange(len(x), device=x.device)
    return pyro.plate("data", size, subsample=rows, dim=-1)


def posterior_flow(
    flow: str | Flow | None, dim: int, context_dim: int, amortize: str, options: dict[str, Any]
) -> Flow | None:
    """Build the posterior's flow, or check the one that was given."""
    if flow is None or flow == "none":
        if options:
            raise OptionError(f"Without a flow there is no option {', '.join(sorted(options))}.")
        return None
    if isinstance(flow, Flow):
        if options:
            raise OptionError(f"{', '.join(sorted(options))}: options belong to a flow's formula.")
        if flow.dim != dim or flow.context_dim not in (0, context_dim):
            raise OptionError(
                f"FlowVAE needs a flow of dim={dim} and context_dim 0 or {context_dim}; got "
                f"dim={flow.dim}, context_dim={flow.context_dim}."
            )
        return flow
    built = make_flow(flow, dim, context_dim, **options)
    if amortize == "linear":
        amortize_linearly(built)
    return built


def prior_density(
    prior: str | Flow | FlowDensity | Prior | None, dim: int, condition_dim: int
) -> FlowDensity | Prior | None:
    """Build the prior, or check the one that was given; None is the standard normal."""
    if prior is None or prior == "none":
        return None
    if isinstance(prior, str) and (found := re.fullmatch(r"mixture(?:\*(\d+))?", prior.strip())):
        return MixturePrior(dim, int(found[1])) if found[1] else MixturePrior(dim)
    if isinstance(prior, Prior):
        if prior.dim != dim:
            raise OptionError(f"FlowVAE needs a prior of dim={dim}; got dim={prior.dim}.")
        return prior
    flow = make_flow(prior, dim, condition_dim) if isinstance(prior, str) else prior
    density = flow if isinstance(flow, FlowDensity) else FlowDensity(flow)
    if density.flow.dim != dim or density.flow.context_dim not in (0, condition_dim):
        raise OptionError(
            f"FlowVAE needs a prior of dim={dim} and context_dim 0 or {condition_dim}; got "
            f"dim={density.flow.dim}, context_dim={density.flow.context_dim}."
        )
    if density.base is not None:
        raise OptionError("FlowVAE's prior is a flow of standard normal noise; leave base out.")
    return density


def call_net(what: str, net: Callable[..., Any], *given: Tensor) -> Any:
    """Call encoder or decoder; errors of torch about sizes and types name it."""
    try:
        return net(*given)
    except (RuntimeError, ValueError) as error:
        came = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in given)
        words = (str(error).splitlines() or [""])[0]
        looked_up = "" if given[0].is_floating_point() else (
            " Categories come as integers, to be looked up: DenseEncoder(..., levels=L), or "
            "nn.Embedding in an encoder of your own."
        )  # fmt: skip
        raise ShapeError(
            f"The {what} failed on an input of shape {came}: {words}. Check the sizes and the "
            f"number type that it was built for.{looked_up}"
        ) from error


def encoder_output(
    found: Any, rows: int, dim: int, context_dim: int, *, flow: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check what an encoder returned; return ``(loc, scale, context or None)``."""
    want = f"(loc ({rows}, {dim}), scale ({rows}, {dim}), " + (
        f"context ({rows}, {context_dim}))" if context_dim else "None)"
    )
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        count = f"{len(found)} parts" if isinstance(found, tuple | list) else type(found).__name__
        raise ShapeError(f"The encoder needs to return {want}; it returned {count}.")
    loc, scale = found[:2]
    context = found[2] if len(found) == 3 else None
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in found]
    fits = shapes[:2] == [(rows, dim)] * 2
    if context_dim:
        fits = fits and len(found) == 3 and shapes[2] == (rows, context_dim)
    if flow and not context_dim and context is not None:
        came = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
        raise ShapeError(
            f"The encoder returns a context, {came}, and context_dim=0 is one flow for all images. "
            "Build FlowVAE(..., context_dim=...) with its size, or return None for it."
        )
    if not fits:
        raise ShapeError(f"The encoder needs to return {want}; it returned shapes {shapes}.")
    # Under autocast the two may come in different types: a softplus is computed in full precision.
    loc, scale = lift(loc), lift(scale)
    if not loc.is_floating_point() or loc.dtype != scale.dtype:
        raise DataError(
            f"The encoder's loc and scale need one floating type; they are {loc.dtype} and "
            f"{scale.dtype}."
        )
    # NaN passes: whoever trains finds it, and says where it came from.
    read = scale.device.type == "cpu" and not torch.compiler.is_compiling()
    if read and bool((scale <= 0).any()):
        raise DataError(
            "The encoder's scale has to be positive; its smallest is "
            f"{float(scale.detach().min()):g}. Apply softplus or exp to its last layer."
        )
    return loc, scale, lift(context) if context_dim else None
