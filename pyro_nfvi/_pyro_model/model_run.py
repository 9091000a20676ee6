"""One run of the model at given latent values, for one particle or for a plate of particles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_nfvi._pyro_model.discrete_sampling import draw_discrete
from pyro_nfvi._pyro_model.enumeration import (
    Factor,
    VmapEnum,
    check_scales,
    common_scale,
    connected,
    factorise,
    sum_out,
)
from pyro_nfvi._pyro_model.latent_space import LatentSpace, is_point_mass
from pyro_nfvi._pyro_model.markov_enumeration import MarkovSites
from pyro_nfvi._pyro_model.missing_data import Complete
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError

#: What a run can return beside the log joint.
DETERMINISTIC, TERM = "deterministic", "term/"
NO_SITES: frozenset[str] = frozenset()
#: Name of the plate that stands for the particles.
PARTICLES = "_nfvi_particles"


@dataclass(frozen=True)
class Evaluation:
    """Results of one run of the model, one row per particle.

    Attributes:
        log_p: The log joint with the Jacobian of the constraints, ``(S,)``, in nats.
        deterministic: Values of the deterministic sites, ``(S, *shape)``.
        log_likelihood: Log density of every observation, unscaled, ``(S, *batch_shape)``.
        discrete: Draws of the discrete sites that are summed out in ``log_p``, from their
            posterior given the continuous ones, ``(S, *shape)``.
        log_prior: Log density of every latent site, as it counts in ``log_p`` (scaled, masked, in
            the measure of the site), ``(S, *batch_shape)``.
    """

    log_p: Tensor
    deterministic: TensorDict = field(default_factory=dict)
    log_likelihood: TensorDict = field(default_factory=dict)
    discrete: TensorDict = field(default_factory=dict)
    log_prior: TensorDict = field(default_factory=dict)


class SetSubsample(Messenger):
    """Gives subsampling plates their indices from outside, as explicit inputs."""

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.indices = indices

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.indices:
            index = self.indices[msg["name"]]
            count = getattr(msg["fn"], "subsample_size", None)
            if count is not None and count != len(index):
                raise ModelError(
                    f"The plate {msg['name']!r} asks for {count} rows now, and for {len(index)} "
                    "when the model was first run. Its subsample_size has to stay: leave a last, "
                    "smaller batch to pyro.plate(..., subsample=index), or drop it."
                )
            msg["value"] = index
            msg["done"] = True

    def _pyro_nfvi_rows(self, msg: Message) -> None:
        """Tell a :class:`~pyro_nfvi._pyro_model.batch_model.BatchModel` whose data to fetch."""
        self._pyro_sample(msg)


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Tell whether a node of a concrete trace holds a function of other sites.

    That is a ``pyro.deterministic`` site, or one that a reparameteriser replaced: both are observed
    deltas at their own value. So is a delta that nobody observes.
    """
    if site["type"] != "sample":
        return False
    if site["infer"].get("_deterministic") or is_point_mass(site):
        return True
    fn, value = site["fn"], site["value"]
    while isinstance(getattr(fn, "base_dist", None), Distribution):
        fn = fn.base_dist
    if not (site["is_observed"] and isinstance(fn, Delta) and torch.is_tensor(value)):
        return False
    # A plate may have expanded the delta, which keeps its memory.
    return bool(fn.v.untyped_storage().data_ptr() == value.untyped_storage().data_ptr())


def is_replaced(site: Mapping[str, Any], latent: Iterable[str]) -> bool:
    """Tell whether a node is a latent of the user's that a reparameteriser replaced by others.

    Reparameterisers of Pyro name what they put in place of a site after it (``x_decentered`` for
    ``x``), or leave it the density of a change of variables, as NeuTra does. An observed delta
    without either is a deterministic site in the idiom of early Pyro.
    """
    if not is_deterministic(site) or site["infer"].get("_deterministic") or is_point_mass(site):
        return False
    if any(name.startswith(f"{site['name']}_") for name in latent):
        return True
    fn = site["fn"]
    while isinstance(getattr(fn, "base_dist", None), Distribution):
        fn = fn.base_dist
    return bool((fn.log_density != 0).any()) if torch.is_tensor(fn.log_density) else False


def is_observed(site: Mapping[str, Any], latent: Iterable[str]) -> bool:
    """Tell whether a node is data: observed, no latent held at a value, no deterministic site.

    A ``pyro.factor`` counts: it is what makes a posterior differ from the prior.
    """
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and not site_is_subsample(site)
        and not is_deterministic(site)
        and site["name"] not in latent
    )


def check_sites(trace: Trace, latent: LatentSpace, enumerated: frozenset[str]) -> None:
    """Refuse a run whose latent sites are not those of the latent space.

    A site that was not met leaves its density out of the log joint, and one that is new is drawn
    from its prior: either way the number is of another model.

    Raises:
        ModelError: A latent site is missing or new.
    """
    for name in latent.sites:
        if name not in trace.nodes:
            raise ModelError(
                f"The latent site {name!r} was not met in this run of the model: its structure "
                "changes between runs. A flow needs the same sites in every run. Draw the site "
                "always and let the likelihood use it or not; or make one fit for each path, and "
                "weight the fits by prior and evidence (examples/unknown_degree.py)."
            )
    for name, site in trace.nodes.items():
        if not (
            site["type"] != "sample"
            or site["is_observed"]
            or name in enumerated
            or site_is_subsample(site)
            or is_point_mass(site)
        ):
            raise ModelError(
                f"The latent site {name!r} is not in the guide, so it would be drawn from the "
                "prior at every step. Expose it to the guide, or condition the model on it; where "
                "it is drawn in some runs of the model only, draw it always."
            )


class ModelRun:
    """The model with its arguments, ready to be run at latent values.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latent: The latent space.
        max_plate_nesting: Dimensions that plates and batch shapes take, from the right.
        enumerated: Names of the discrete sites to sum out.
        missing: Values for observations that are NaN under a mask, by site.
        deterministic: Names of the sites that are functions of others.
        observed: Names of the sites that are data, factors among them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latent: LatentSpace,
        *,
        max_plate_nesting: int,
        enumerated: frozenset[str] = frozenset(),
        missing: Mapping[str, Tensor] | None = None,
        deterministic: frozenset[str] = frozenset(),
        observed: frozenset[str] = frozenset(),
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.latent = latent
        self.max_plate_nesting = max_plate_nesting
        self.enumerated = enumerated
        self.missing = dict(missing or {})
        self.deterministic, self.observed = deterministic, observed
        #: Whether it is run under ``torch.vmap``.
        self.under_vmap = False
        #: Shapes of one particle's outputs, known after the first scalar run.
        self.shapes: dict[str, tuple[int, ...]] = {}

    def trace(
        self,
        values: TensorDict,
        subsample: Mapping[str, Tensor],
        *,
        particles: int | None = None,
        enumerate_sites: bool = True,
    ) -> Trace:
        """Run the model once; with ``particles``, inside a plate left of all its dimensions."""
        nesting = self.max_plate_nesting + (particles is not None)
        with ExitStack() as stack:
            # Handlers of the caller (a scale, a plate) are no part of this model.
            stack.enter_context(poutine.block())
            stack.enter_context(SetSubsample(subsample))
            stack.enter_context(Complete(self.missing))
            stack.enter_context(MarkovSites())
            if particles is not None:
                stack.enter_context(pyro.plate(PARTICLES, particles, dim=-nesting))
            model = self.model
            if self.enumerated and enumerate_sites:
                enum = VmapEnum if self.under_vmap else EnumMessenger
                model = enum(first_available_dim=-1 - nesting)(model)
            held = poutine.condition(model, data=values)
            trace = poutine.trace(held).get_trace(*self.args, **self.kwargs)
            check_sites(trace, self.latent, self.enumerated)
            trace.compute_log_prob()
        return trace

    def scalar(
        self, z: Tensor, subsample: Mapping[str, Tensor], sites: frozenset[str] = NO_SITES
    ) -> tuple[Tensor, TensorDict, TensorDict]:
        """Evaluate one vector ``(D,)``: its log joint, deterministic values, log likelihood."""
        values, ladj = self.latent.constrain(z, weighted=True)
        trace = self.trace(values, subsample)
        log_p = self._total(trace, None) + ladj
        return (log_p, *self._details(trace, None, sites))

    def plate(
        self, z: Tensor, subsample: Mapping[str, Tensor], sites: frozenset[str] = NO_SITES
    ) -> tuple[Tensor, TensorDict, TensorDict]:
        """Evaluate ``z (S, D)`` in one run, the particles as an outermost plate."""
        count = z.shape[0]
        values, ladj = self.latent.constrain(z, weighted=True)
        for name, site in self.latent.sites.items():
            values[name] = self._left(values[name], len(site.batch_shape))
        trace = self.trace(values, subsample, particles=count)
        log_p = self._total(trace, count) + ladj
        return (log_p, *self._details(trace, count, sites))

    def discrete(
        self,
        z: Tensor,
        subsample: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        *,
        together: bool,
    ) -> tuple[TensorDict, TensorDict]:
        """Draw the enumerated sites given ``z``; return them and the deterministic sites there.

        ``z (S, D)`` in one run with noise ``(S, *batch_shape)`` if ``together``, else ``(D,)``.
        """
        particles = len(z) if together else None
        values, _ = self.latent.constrain(z)
        if together:
            for name, site in self.latent.sites.items():
                values[name] = self._left(values[name], len(site.batch_shape))
            noise = {name: self._left(one, one.dim() - 1) for name, one in noise.items()}
        trace = self.trace(values, subsample, particles=particles)
        names = [name for name in trace.nodes if name in self.enumerated]
        drawn = draw_discrete(trace, names, noise, under_vmap=self.under_vmap)
        trace = self.trace(values | drawn, subsample, particles=particles, enumerate_sites=False)
        deterministic, _ = self._details(trace, particles, frozenset({DETERMINISTIC}))
        if particles is None:
            self.shapes.update({name: tuple(value.shape) for name, value in drawn.items()})
        return (
            {name: self._rows(name, value, particles) for name, value in drawn.items()},
            deterministic,
        )

    def _left(self, value: Tensor, batch_dims: int) -> Tensor:
        """Insert axes between the particles and a site's own batch dimensions."""
        ones = (1,) * (self.max_plate_nesting - batch_dims)
        return value.reshape((value.shape[0], *ones, *value.shape[1:]))

    def _total(self, trace: Trace, particles: int | None) -> Tensor:
        """Sum the log probabilities of a trace, per particle, discrete sites summed out."""
        sites = self._sites(trace)
        factors: list[Factor] = []
        if self.enumerated:
            sites, factors = factorise(trace, sites)
        total: Tensor | None = None
        for site in sites:
            log_prob = site["log_prob"]
            lead = log_prob.dim() - self.max_plate_nesting - 1
            while lead > 0 and log_prob.shape[0] == 1:  # a discrete site of one value
                log_prob, lead = log_prob.squeeze(0), lead - 1
            if particles is None or lead < 0:  # lead < 0: the site does not know the particles
                log_prob = log_prob.sum()
            elif lead == 0:
                log_prob = log_prob.reshape(log_prob.shape[0], -1).sum(1)
            else:
                raise ModelError(f"site {site['name']!r} has dimensions left of all plates")
            total = log_prob if total is None else total + log_prob
        if factors:
            keep = () if particles is None else (PARTICLES,)
            found = sum_out(trace, factors, keep, under_vmap=self.under_vmap)
            # The scale stands outside of the sum, as in Pyro's TraceEnum_ELBO.
            found = found * common_scale(factors)
            total = found if total is None else total + found
        return torch.zeros(()) if total is None else total

    def check_scales(self, trace: Trace) -> None:
        """Refuse an enumerated trace whose scales differ where they must not."""
        _, factors = factorise(trace, self._sites(trace))
        if factors:
            check_scales(factors)

    @staticmethod
    def _sites(trace: Trace) -> list[dict[str, Any]]:
        return [
            site
            for site in trace.nodes.values()
            if site["type"] == "sample" and not site_is_subsample(site)
        ]

    def _details(
        self, trace: Trace, particles: int | None, sites: frozenset[str]
    ) -> tuple[TensorDict, TensorDict]:
        deterministic, terms = {}, {}
        for name, site in trace.nodes.items():
            if DETERMINISTIC in sites and name in self.deterministic:
                value = site["value"]
                if particles is None:
                    self.shapes.setdefault(name, tuple(value.shape))
                deterministic[name] = self._rows(name, value, particles)
            if TERM + name in sites:
                make = self._likelihood if name in self.observed else self._prior
                terms[name] = make(trace, site, particles)
        return deterministic, terms

    def terms(self, trace: Trace) -> tuple[list[str], dict[str, str]]:
        """Sites of the prior, and those with no density of their own, with the reason.

        A site that a reparameteriser replaced is of the prior where it kept a density.
        """
        nodes = trace.nodes
        kept = [
            n for n in nodes if n in self.deterministic and bool((nodes[n]["log_prob"] != 0).any())
        ]
        prior = [name for name in nodes if name in self.latent.sites or name in kept]
        if not self.enumerated:
            return prior, {}
        _, factors = factorise(trace, self._sites(trace))
        summed = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
        faults = {}
        for factor in factors:
            name = factor.site["name"]
            if name in prior:
                faults[name] = f"the latent site {name!r} depends on a discrete site"
            elif name in self.observed:
                try:
                    self._refuse_shared(factor.site, connected(factors, summed, factor))
                except ModelError as error:
                    faults[name] = str(error).rstrip(".")
        return prior, faults

    def _prior(self, trace: Trace, site: dict[str, Any], particles: int | None) -> Tensor:
        name, log_prob = site["name"], site["log_prob"]
        if particles is None:
            self.shapes.setdefault(f"log_likelihood/{name}", tuple(log_prob.shape))
        return self._rows(f"log_likelihood/{name}", log_prob, particles)

    def _likelihood(self, trace: Trace, site: dict[str, Any], particles: int | None) -> Tensor:
        name = site["name"]
        factor: Factor | None = None
        factors: list[Factor] = []
        if self.enumerated:
            _, factors = factorise(trace, self._sites(trace))
            factor = next((f for f in factors if f.site is site), None)
        if factor is None:
            log_prob = site["unscaled_log_prob"]
            mask = site["mask"]
            if mask is not None:
                mask = torch.as_tensor(mask, device=log_prob.device)
                log_prob = torch.where(mask, log_prob, torch.zeros_like(log_prob))
        else:
            summed = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
            group = connected(factors, summed, factor)
            self._refuse_shared(site, group)
            plates = [f.name for f in site["cond_indep_stack"] if f.vectorized]
            log_prob = sum_out(trace, group, plates, under_vmap=self.under_vmap)
            if any(f.site["name"] in self.latent.sites for f in group):
                # Continuous latents depend on the discrete ones: the density is given them.
                rest = [f for f in group if f is not factor]
                log_prob = log_prob - sum_out(trace, rest, plates, under_vmap=self.under_vmap)
        if particles is None:
            self.shapes.setdefault(f"log_likelihood/{name}", tuple(log_prob.shape))
        return self._rows(f"log_likelihood/{name}", log_prob, particles)

    def _refuse_shared(self, site: dict[str, Any], group: list[Factor]) -> None:
        """Refuse a site whose observations are tied together by what is summed out."""
        for factor in group:
            other = factor.site
            if other["name"] in self.observed and other is not site:
                raise ModelError(
                    f"The log likelihood of {site['name']!r} cannot be split into observations: "
                    f"it shares a discrete site that is summed out with {other['name']!r}, so that "
                    "neither has a density of its own. Give the discrete site one observed site, "
                    "such as one of a joint distribution"
                )
            missing = {f.name for f in site["cond_indep_stack"] if f.vectorized} - {
                f.name for f in other["cond_indep_stack"]
            }
            if factor.discrete and missing:
                raise ModelError(
                    f"The log likelihood of {site['name']!r} cannot be split into observations: "
                    f"the enumerated site {other['name']!r} is shared by the plate "
                    f"{sorted(missing)[0]!r}."
                )

    def _rows(self, key: str, value: Tensor, particles: int | None) -> Tensor:
        """Bring one output into ``(S, *shape of one particle)``."""
        if particles is None:
            return value
        shape = self.shapes[key]
        if value.numel() == particles * torch.Size(shape).numel():
            return value.reshape((particles, *shape))
        return value.expand((particles, *shape))
