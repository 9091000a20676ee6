"""A first value for each site: drawn from its prior, or feasible where nothing can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi.supports import bijection, support_of

__all__ = ["feasible", "prior_trace", "value_of"]


def feasible(site: Mapping[str, Any]) -> Tensor:
    """Return the value of a site at 0 in the unconstrained space; needs no draw.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> fn = dist.ImproperUniform(dist.constraints.positive, (3,), ())
        >>> feasible({"fn": fn})
        tensor([1., 1., 1.])
    """
    fn = site["fn"]
    transform = bijection(support_of(fn))
    return transform(torch.zeros(transform.inverse_shape(fn.shape())))


def value_of(site: Mapping[str, Any]) -> Tensor:
    """Draw a site from its prior; a feasible value where it is improper and cannot be drawn."""
    try:
        return site["fn"].sample()
    except NotImplementedError:
        return feasible(site)


def prior_trace(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Trace:
    """Run the model once, alone and without gradients, whatever its priors can or cannot."""
    with torch.no_grad(), poutine.block():
        return poutine.trace(InitMessenger(value_of)(model)).get_trace(*args, **kwargs)
