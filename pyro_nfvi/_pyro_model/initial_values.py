"""Points to start from: the unconstrained origin, uniform draws around it, draws from the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import broadcast_shape
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK, Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._pyro_model.constraints import bijection, support_of
from pyro_nfvi._pyro_model.flat_prior import FlatPrior
from pyro_nfvi._pyro_model.latent_space import is_discrete
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi.errors import ModelError


class StartMessenger(InitMessenger):
    """Pyro's handler of first values, which knows of the plates around a reparameteriser.

    A reparameteriser inside of a plate asks for the first value of its site before the plate has
    broadcast it. A value that small would go on through the model, and rows of a plate would share
    one latent; here the distribution is broadcast first.
    """

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        _check_distribution(msg)
        msg["fn"] = self._broadcast(msg)
        try:
            super()._pyro_sample(msg)
        finally:
            msg["fn"] = fn

    def _broadcast(self, msg: Message) -> Any:
        fn: Any = msg["fn"]
        if not isinstance(fn, TorchDistributionMixin):
            return fn
        known = {frame.name for frame in msg["cond_indep_stack"]}
        shape = fn.batch_shape
        for handler in reversed(_PYRO_STACK):
            if handler is self:
                break
            if isinstance(handler, IndepMessenger) and handler.dim is not None:
                if handler.name not in known:
                    shape = broadcast_shape(shape, (handler.size,) + (1,) * (-handler.dim - 1))
        return fn if shape == fn.batch_shape else fn.expand(shape)


def feasible(site: Mapping[str, Any]) -> Tensor:
    """Return the value of a site at 0 in the unconstrained space; needs no draw.

    A :class:`FlatPrior` brings a point of its own.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> fn = dist.ImproperUniform(dist.constraints.positive, (3,), ())
        >>> feasible({"fn": fn})
        tensor([1., 1., 1.])
    """
    transform, origin = _origin(site)
    return transform(origin)


def around_origin(site: Mapping[str, Any]) -> Tensor:
    """Draw a site's unconstrained value uniformly from -2 to 2; a discrete site from its prior.

    Source: Stan's default initial values.
    """
    if is_discrete(site["fn"]):
        return site["fn"].sample()
    transform, origin = _origin(site)
    return transform(origin + MODELS.start_radius * (2 * torch.rand_like(origin) - 1))


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
    return start_trace(value_of, model, args, kwargs)


def start_trace(
    start: Callable[[Mapping[str, Any]], Tensor],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Trace:
    """Run the model once, alone and without gradients, at values given site by site."""
    with torch.no_grad(), poutine.block():
        return poutine.trace(StartMessenger(start)(model)).get_trace(*args, **kwargs)


def _check_distribution(msg: Message) -> None:
    """Refuse a site without a distribution of Pyro; the message names it."""
    name, fn = msg["name"], msg["fn"]
    if not callable(fn) and not isinstance(fn, torch.distributions.Distribution):
        raise ModelError(
            f"The site {name!r} needs a distribution; got {type(fn).__name__}. Write "
            f"pyro.sample({name!r}, pyro.distributions.Normal(0.0, 1.0)), or another of them."
        )
    if isinstance(fn, torch.distributions.Distribution) and not isinstance(fn, Distribution):
        kind = type(fn).__name__
        raise ModelError(
            f"The site {name!r} has a distribution of torch.distributions, which lacks what Pyro "
            f"needs. Take pyro.distributions.{kind}."
        )


def _origin(site: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """Bijection of a site's support, and the origin, with dtype and device of the site's draws."""
    fn = site["fn"]
    try:
        transform = bijection(support_of(fn))
    except ModelError as error:
        raise ModelError(f"Latent site {site.get('name', '')!r}: {error}") from error
    if isinstance(fn, FlatPrior):
        return transform, fn.start.expand(fn.shape())
    try:
        # Forked: where a start lies does not depend on how its dtype is found.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            like = fn.sample()
    except (NotImplementedError, RuntimeError, ValueError):  # an improper prior, or a vague one
        like = torch.zeros(())
    dtype = torch.promote_types(like.dtype, torch.get_default_dtype())
    shape = transform.inverse_shape(fn.shape())
    return transform, torch.zeros(shape, dtype=dtype, device=like.device)
