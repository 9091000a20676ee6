"""Guides of Pyro as densities of the unconstrained vector, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from pyro_nfvi._pyro_model.constraints import bijection, inside
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.param_sites import constraint_of, param_leaves
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._site_noise import draw, is_reparametrised, noise_numbers, noise_shape

#: The plate in which draws stand side by side.
_DRAWS = "_nfvi_draws"


class GuidePart(Protocol):
    """A density of some coordinates of the vector.

    Attributes:
        places: These coordinates ``(d,)``.
        noise: Numbers of noise that a draw takes.
    """

    places: Tensor
    noise: int

    def push(self, eps: Tensor) -> TensorPair:
        """Map noise ``(N, E)`` to coordinates ``(N, d)`` and their log density ``(N,)``."""

    def log_prob(self, u: Tensor) -> Tensor:
        """Score coordinates ``(N, d)``: ``(N,)`` in nats."""


class VectorPart:
    """A guide that has a distribution of its coordinates, as Pyro's ``AutoContinuous`` has.

    Args:
        posterior: Returns the distribution ``(d,)`` at the present parameters.
        places: The coordinates.
    """

    def __init__(self, posterior: Callable[[], Any], places: Tensor) -> None:
        self.posterior, self.places = posterior, places
        self.noise = math.prod(noise_shape(posterior()))

    def push(self, eps: Tensor) -> TensorPair:
        fn = self.posterior().expand((len(eps),))
        u = draw(fn, eps)
        return u, fn.log_prob(u)

    def log_prob(self, u: Tensor) -> Tensor:
        return self.posterior().log_prob(u)


class SitesPart:
    """A function that draws named sites, each from a distribution of its own.

    The function is run for all draws at once, in a plate left of its own plates, and one draw
    after the other where that gives other numbers.

    Args:
        guide: The function.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        space: The latent space of the model.
        names: Its sites; None for all.

    Raises:
        OptionError: It draws other sites, sites without a density at given points, or sites
            without reparametrised draws.
    """

    def __init__(
        self,
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        space: LatentSpace,
        names: frozenset[str] | None = None,
    ) -> None:
        self._guide, self._args, self._kwargs = guide, args, dict(kwargs)
        with no_store():
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            self.leaves: dict[str, Tensor] = {
                name: leaf.detach().clone().requires_grad_()
                if not isinstance(leaf, torch.nn.Parameter)
                else leaf
                for name, leaf in param_leaves(trace).items()
            }
            self._constraints: dict[str, Constraint] = {
                name: constraint_of(trace, name) for name in self.leaves
            }
        drawn = _checked(trace, space, names)
        self._records = [record for record in space.records if record.name in drawn]
        own = [torch.arange(record.start, record.stop) for record in self._records]
        self.places = torch.cat(own).to(space.init_loc.device)
        self._nesting = max(
            (-frame.dim for site in drawn.values() for frame in site["cond_indep_stack"]
             if frame.dim is not None),
            default=0,
        )  # fmt: skip
        self.noise = sum(noise_numbers(site["fn"], 1) for site in drawn.values())
        self.vectorised = True
        self.vectorised = self._agrees(space.init_loc)

    def replace_leaf(self, old: Tensor, new: Tensor) -> None:
        """Take another tensor, of the same value, for a parameter."""
        self.leaves = {name: new if leaf is old else leaf for name, leaf in self.leaves.items()}

    def _agrees(self, like: Tensor) -> bool:
        """Tell whether draws side by side have the densities of single runs."""
        eps = torch.linspace(-1.2, 1.3, 3 * self.noise).to(like).reshape(3, self.noise)
        with torch.no_grad():
            try:
                u, together = self.push(eps)
            except Exception:  # a function that cannot be run for several draws
                return False
            self.vectorised = False
            alone = self.log_prob(u)
        return torch.allclose(together, alone, rtol=1e-3, atol=1e-3)

    def push(self, eps: Tensor) -> TensorPair:
        if not self.vectorised and len(eps) != 1:
            rows = [self.push(row[None]) for row in eps]
            return torch.cat([u for u, _ in rows]), torch.cat([log_q for _, log_q in rows])
        trace = self._run(_Noise(eps), len(eps))
        parts, ladj = [], eps.new_zeros(len(eps))
        for record in self._records:
            value = trace.nodes[record.name]["value"].reshape(len(eps), *record.shape)
            transform = bijection(record.support)
            u = transform.inv(inside(record.support, value))
            own = transform.log_abs_det_jacobian(u, value)
            ladj = ladj + own.reshape(len(eps), -1).sum(-1)
            parts.append(u.reshape(len(eps), -1))
        return torch.cat(parts, -1), self._scored(trace, len(eps)) + ladj

    def log_prob(self, u: Tensor) -> Tensor:
        if not self.vectorised and len(u) != 1:
            return torch.cat([self.log_prob(row[None]) for row in u])
        values: TensorDict = {}
        ladj, at = u.new_zeros(len(u)), 0
        for record in self._records:
            size = record.stop - record.start
            part = u[:, at : at + size].reshape(len(u), *record.unconstrained_shape)
            transform = bijection(record.support)
            value = transform(part)
            ladj = ladj + transform.log_abs_det_jacobian(part, value).reshape(len(u), -1).sum(-1)
            value = inside(record.support, value)
            if self.vectorised:  # plates of the guide stand between the draws and the site
                fill = self._nesting + record.event_dim - len(record.shape)
                value = value.reshape(len(u), *(1,) * fill, *record.shape)
            else:
                value = value.reshape(record.shape)
            values[record.name] = value
            at += size
        return self._scored(self._run(_Values(values), len(u)), len(u)) + ladj

    def _run(self, handler: Messenger, rows: int) -> Trace:
        parameters = _Parameters(self.leaves, self._constraints)
        with no_store(), pyro.validation_enabled(False), parameters, handler:
            if not self.vectorised:
                return poutine.trace(self._guide).get_trace(*self._args, **self._kwargs)
            with pyro.plate(_DRAWS, rows, dim=-1 - self._nesting):
                return poutine.trace(self._guide).get_trace(*self._args, **self._kwargs)

    def _scored(self, trace: Trace, rows: int) -> Tensor:
        with pyro.validation_enabled(False):
            trace.compute_log_prob(lambda name, site: not site_is_subsample(site))
        total: Tensor | None = None
        for record in self._records:
            own = trace.nodes[record.name]["log_prob"].reshape(rows, -1).sum(-1)
            total = own if total is None else total + own
        assert total is not None
        return total


@contextmanager
def no_store() -> Iterator[None]:
    """Give what runs an empty param store of its own."""
    with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
        yield


def _checked(
    trace: Trace, space: LatentSpace, names: frozenset[str] | None
) -> dict[str, dict[str, Any]]:
    """Return the sites that a guide draws, in its order; refuse those that cannot be used."""
    drawn: dict[str, dict[str, Any]] = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        fn = site["fn"]
        if name not in space.sites:
            what = "an auxiliary site" if site["infer"].get("is_auxiliary") else "no latent site"
            raise OptionError(
                f"The guide draws {name!r}, which is {what} of the model: the density of the "
                f"latents alone, {sorted(space.sites)}, is not known then. Draw these, each from "
                "a distribution of its own; or train the guide with pyro.infer.SVI, and convert "
                "it with pyro_nfvi.to_arviz."
            )
        if isinstance(fn, pyro.distributions.Delta):
            raise OptionError(
                f"The guide draws {name!r} from a Delta, which has no density: there is no bound, "
                "and nothing to judge. Give it a width, or take guide='laplace', a Gaussian at "
                "the highest point."
            )
        if not is_reparametrised(fn):
            raise OptionError(
                f"The guide draws {name!r} from a {type(fn).__name__}, whose draws carry no "
                "gradient to its parameters. Take a distribution with rsample, or train the "
                "guide with pyro.infer.SVI."
            )
        drawn[name] = site
    wanted = frozenset(space.sites) if names is None else names
    if missing := sorted(wanted - set(drawn)):
        raise OptionError(
            f"The guide does not draw the model's latent sites {missing}. It is to draw all of "
            f"{sorted(wanted)}, under these names."
        )
    return drawn


class _Noise(Messenger):
    """Draw each site from its share of the noise ``(N, E)``."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self._eps, self._at = eps, 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        fn, rows = msg["fn"], len(self._eps)
        size = noise_numbers(fn, rows)
        part = self._eps[:, self._at : self._at + size]
        self._at += size
        msg["value"] = draw(fn, part.reshape(noise_shape(fn)))
        msg["done"] = True


class _Values(Messenger):
    """Hold sites at values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True


class _Parameters(Messenger):
    """Give param statements the values of leaves."""

    def __init__(self, leaves: Mapping[str, Tensor], constraints: Mapping[str, Constraint]) -> None:
        super().__init__()
        self._leaves, self._constraints = leaves, constraints

    def _pyro_param(self, msg: Any) -> None:
        leaf = self._leaves.get(msg["name"])
        if leaf is not None:
            msg["value"] = transform_to(self._constraints[msg["name"]])(leaf)
            msg["done"] = True
