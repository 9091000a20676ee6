"""``LatentSpace``: the latent sites of a model as one unconstrained vector, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import broadcast_shape
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_nfvi._pyro_model.constraints import (
    bijection,
    inside,
    support_from_spec,
    support_of,
    support_spec,
)
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.errors import ModelError, OptionError, ShapeError


@dataclass(frozen=True)
class LatentSite:
    """One latent site of the model and its place ``[start, stop)`` in the vector."""

    name: str
    support: Constraint
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    event_dim: int
    start: int
    stop: int
    cond_indep_stack: tuple[CondIndepStackFrame, ...] = ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The part of ``shape`` that plates own."""
        return self.shape[: len(self.shape) - self.event_dim]

    @property
    def weight(self) -> float:
        r"""Times that the terms of the site count: :math:`N/B` for B rows of a plate of N."""
        frames = [frame for frame in self.cond_indep_stack if frame.full_size is not None]
        return math.prod(int(frame.full_size) / int(frame.size) for frame in frames)

    def spec(self) -> dict[str, Any]:
        """Describe the site in terms that JSON can hold."""
        return {
            "name": self.name,
            "support": support_spec(self.support),
            "shape": list(self.shape),
            "unconstrained_shape": list(self.unconstrained_shape),
            "event_dim": self.event_dim,
            "plates": [_described(frame) for frame in self.cond_indep_stack],
        }


def _described(frame: CondIndepStackFrame) -> list[Any]:
    """Describe a plate: its name, its dim, its rows, and of how many they are a part, if so."""
    size, full = int(frame.size), frame.full_size
    whole = full is None or int(full) == size
    return [frame.name, frame.dim, size, *([] if whole else [int(full)])]


def no_latents(trace: Trace) -> str:
    """Say of a trace without a continuous latent site what it has, and what to do."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    sites = [site for site in sites if not site_is_subsample(site)]
    observed = ", ".join(repr(site["name"]) for site in sites if site["is_observed"])
    points = ", ".join(repr(site["name"]) for site in sites if is_point_mass(site))
    hidden = [site for site in sites if not (site["is_observed"] or is_point_mass(site))]
    discrete = ", ".join(repr(site["name"]) for site in hidden)
    text = "The model has no continuous latent sites, so there is nothing to fit. "
    if discrete:
        return (
            f"{text}Its discrete sites ({discrete}) are summed out, and their posterior needs no "
            "guide: pyro.infer.TraceEnum_ELBO().compute_marginals(model, guide), with a guide of "
            "no sites, has it exactly."
        )
    if points:
        text += f"Deltas hold one value each, and are no unknowns ({points}). "
    elif observed:
        text += f"It has observed sites only ({observed}). "
    return (
        f"{text}Write the unknowns as pyro.sample(name, distribution) without obs=; if they are "
        "hidden by poutine.block, expose them."
    )


def is_discrete(fn: Any) -> bool:
    """Tell whether a distribution says that its values are discrete."""
    try:
        return bool(getattr(getattr(fn, "support", None), "is_discrete", False))
    except NotImplementedError:  # it does not say what its support is
        return False


def is_point_mass(site: Mapping[str, Any]) -> bool:
    """Tell whether a site that nobody observes is a Delta, and so a function of other sites.

    Its value is where all mass is, in every run: there is nothing to infer.
    """
    if site["type"] != "sample" or site["is_observed"]:
        return False
    fn = site["fn"]
    while isinstance(getattr(fn, "base_dist", None), Distribution):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def whole_value(site: Mapping[str, Any]) -> Tensor:
    """Return the value of a site in the whole shape of its distribution.

    A reparameteriser inside of a plate computes the first value of its auxiliary site from that of
    a site that the plate has not yet broadcast: it may then be smaller than the distribution.
    """
    value, shape = site["value"].detach(), site["fn"].shape()
    try:
        return value.expand(shape)
    except RuntimeError:  # of another shape altogether, which the check of the structure tells
        return value


def _is_latent(site: Mapping[str, Any], *, subsampled: bool) -> bool:
    """Tell whether a node of a prototype trace belongs to the vector; errors name the cure."""
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return False
    if is_point_mass(site):
        return False
    name = site["name"]
    if is_discrete(site["fn"]):
        if site["infer"].get("enumerate") == "parallel":
            return False
        fault = (
            f"The latent site {name!r} is discrete ({type(site['fn']).__name__}), which a flow "
            "cannot represent. "
        )
        if not site["fn"].has_enumerate_support:
            raise ModelError(
                f"{fault}Its values are too many to be summed out "
                "(https://pyro.ai/examples/enumeration.html). Make one fit for each value "
                f"that matters, of pyro.poutine.condition(model, {{{name!r}: value}}), and weight "
                "the fits by prior and evidence (examples/unknown_degree.py); or hide it from the "
                "guide with pyro.poutine.block, and it is drawn from its prior."
            )
        raise ModelError(
            f"{fault}Sum it out: pyro.sample(..., infer={{'enumerate': 'parallel'}}) "
            "with TraceEnum_ELBO or NFVI (see https://pyro.ai/examples/enumeration.html); or hide "
            "it from the guide with pyro.poutine.block."
        )
    for frame in () if subsampled else site["cond_indep_stack"]:
        full = frame.full_size
        if full is not None and int(frame.size) != int(full):
            raise ModelError(
                f"The latent site {name!r} lies in the plate {frame.name!r}, which subsamples "
                f"{int(frame.size)} of {int(full)}: every mini-batch would share its latents. "
                "Take AutoPlateFlow, which has latents for all rows (NFVI does by itself, with "
                "guide='auto'); or use the whole plate."
            )
    return True


@dataclass(frozen=True, eq=False)
class LatentSpace:
    r"""The continuous latent sites of a model as one vector z of unconstrained reals.

    Sites stand in the order of the model's trace, parents before children. Batch dimensions
    stand left of everything: ``z (*b, D)`` goes with values of shape ``(*b, *site.shape)``.

    Densities use Pyro's own measure (``biject_to(support).log_abs_det_jacobian``; a simplex
    counts its first K-1 coordinates), so that the model's log joint needs no correction.
    Constrained values stay inside the open support also where rounding would leave it; see
    :func:`pyro_nfvi._pyro_model.constraints.inside`.

    Immutable; pickles and deep-copies (it holds no model and no closure).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        >>> space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace())
        >>> values, ladj = space.constrain(torch.zeros(7, 1))
        >>> values["tau"].shape, ladj.shape
        (torch.Size([7]), torch.Size([7]))
        >>> space.pack({"tau": torch.ones(3)}).shape
        torch.Size([3, 1])
    """

    records: tuple[LatentSite, ...]
    init_loc: Tensor

    @classmethod
    def from_trace(cls, trace: Trace, *, subsampled: bool = False) -> LatentSpace:
        """Read the space from one trace of the model.

        Observed sites, subsample indices, discrete sites marked for enumeration and Deltas, which
        are deterministic, are left out.

        Args:
            trace: The trace.
            subsampled: Take latents of the drawn rows of a plate that subsamples, for a guide that
                has latents for all of its rows: the vector is that of a mini-batch then.

        Raises:
            ModelError: There is no latent site, a discrete one is not marked for enumeration,
                a latent lies in a subsampled plate, or a support has no bijection.
        """
        records, parts, start = [], [], 0
        for name, site in trace.nodes.items():
            if not _is_latent(site, subsampled=subsampled):
                continue
            value = whole_value(site)
            try:
                support = support_of(site["fn"])
                u = bijection(support).inv(inside(support, value))
            except ModelError as error:
                raise ModelError(f"Latent site {name!r}: {error}") from error
            shape, stop = tuple(value.shape), start + u.numel()
            stack = tuple(site["cond_indep_stack"])
            event_dim = site["fn"].event_dim
            records.append(
                LatentSite(name, support, shape, tuple(u.shape), event_dim, start, stop, stack)
            )
            parts.append(u.reshape(-1))
            start = stop
        if start == 0:
            raise ModelError(no_latents(trace))
        return cls(tuple(records), torch.cat(parts))

    @property
    def dim(self) -> int:
        """D, the size of the vector."""
        return self.records[-1].stop

    @property
    def sites(self) -> Mapping[str, LatentSite]:
        """The sites by name, in trace order."""
        return MappingProxyType({site.name: site for site in self.records})

    def at(self, index: int) -> str:
        """Name coordinate ``index`` of z in words, such as ``"theta[3]"``."""
        site = next(site for site in self.records if index < site.stop)
        if not site.unconstrained_shape:
            return site.name
        place, rest = [], index - site.start
        for size in reversed(site.unconstrained_shape):
            place.append(str(rest % size))
            rest //= size
        return f"{site.name}[{', '.join(reversed(place))}]"

    def unpack(self, z: Tensor) -> TensorDict:
        """Cut ``z (*b, D)`` into unconstrained values ``(*b, *site.unconstrained_shape)``.

        Raises:
            ShapeError: The last axis of z is not D.
        """
        if z.dim() == 0 or z.shape[-1] != self.dim:
            raise ShapeError(
                f"The latent space needs a vector of shape (*b, {self.dim}); got {tuple(z.shape)}."
            )
        batch = z.shape[:-1]
        return {
            site.name: z[..., site.start : site.stop].reshape((*batch, *site.unconstrained_shape))
            for site in self.records
        }

    def constrain(self, z: Tensor, *, weighted: bool = False) -> tuple[TensorDict, Tensor]:
        r"""Map ``z (*b, D)`` to ``(values, ladj)``, with :math:`\log|\partial values/\partial z|`.

        Args:
            z: The vectors.
            weighted: Count the rows of a plate that subsamples for all of its rows, as Pyro counts
                their densities.

        Returns:
            The constrained values ``(*b, *site.shape)`` by name, and ``ladj (*b,)`` in nats,
            summed over the sites.
        """
        ladj, values = z.new_zeros(z.shape[:-1]), {}
        for site, u in zip(self.records, self.unpack(z).values()):
            transform = bijection(site.support)
            value = transform(u)
            own = self._per_particle(transform.log_abs_det_jacobian(u, value), ladj)
            ladj = ladj + (own * site.weight if weighted and site.weight != 1 else own)
            values[site.name] = inside(site.support, value)
        return values, ladj

    def unconstrain(self, values: Mapping[str, Tensor]) -> TensorPair:
        r"""Map values to ``(z, ladj)``, with :math:`\log|\partial z/\partial values|`.

        The log-determinant is that of this map, hence minus that of :meth:`constrain`, as
        everywhere in the library: ``log q(values) = log q(z) + ladj``.

        Raises:
            ShapeError: A site is missing, has the wrong shape, or batch shapes do not broadcast.
            OptionError: A value lies outside its support.
        """
        z = self.pack(values)
        _, ladj = self.constrain(z)
        return z, -ladj

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Map constrained values ``(*b, *site.shape)`` to the vector ``z (*b, D)``.

        Names that are not latent sites (deterministic ones, say) are ignored.

        Raises:
            ShapeError: A site is missing, has the wrong shape, or batch shapes do not broadcast.
            OptionError: A value lies outside its support.
        """
        batches = [self._batch_of(site, values) for site in self.records]
        try:
            batch = broadcast_shape(*batches)  # torch's own imports sympy, for half a second
        except ValueError as error:
            found = {site.name: tuple(b) for site, b in zip(self.records, batches)}
            raise ShapeError(
                f"The leading (batch) shapes of the values do not broadcast: {found}."
            ) from error
        parts = []
        for site in self.records:
            value = torch.as_tensor(values[site.name]).to(self.init_loc)
            held = inside(site.support, value)
            self._check_support(site, value, held)
            u = bijection(site.support).inv(held).expand((*batch, *site.unconstrained_shape))
            parts.append(u.reshape((*batch, site.stop - site.start)))
        return torch.cat(parts, -1)

    def spec(self) -> dict[str, Any]:
        """Describe the space in terms that JSON can hold, for files and for comparisons."""
        dtype = str(self.init_loc.dtype).removeprefix("torch.")
        return {"dtype": dtype, "sites": [site.spec() for site in self.records]}

    @classmethod
    def from_spec(
        cls,
        spec: Mapping[str, Any],
        init_loc: Tensor,
        supports: Mapping[str, Constraint] | None = None,
    ) -> LatentSpace:
        """Rebuild a space from :meth:`spec` and its initial vector.

        Args:
            spec: The description.
            init_loc: The initial vector.
            supports: Supports by site, for those that have no description: classes of a user's own.
        """
        records, start, given = [], 0, supports or {}
        for site in spec["sites"]:
            stop = start + math.prod(site["unconstrained_shape"])
            records.append(
                LatentSite(
                    site["name"],
                    given[site["name"]]
                    if site["name"] in given
                    else support_from_spec(site["support"], init_loc.dtype, init_loc.device),
                    tuple(site["shape"]),
                    tuple(site["unconstrained_shape"]),
                    site["event_dim"],
                    start,
                    stop,
                    tuple(
                        CondIndepStackFrame(name, dim, size, 0, full[0] if full else size)
                        for name, dim, size, *full in site["plates"]
                    ),
                )
            )
            start = stop
        return cls(tuple(records), init_loc)

    def difference(self, other: LatentSpace) -> str | None:
        """Say in words how ``other`` differs from this space, or None if it does not."""
        mine, theirs = self.sites, other.sites
        lines = [f"site {name!r} is missing" for name in mine if name not in theirs]
        lines += [f"site {name!r} is new" for name in theirs if name not in mine]
        for name in (name for name in mine if name in theirs):
            ours, its = mine[name].spec(), theirs[name].spec()
            lines += [
                f"site {name!r} has {key.replace('_', ' ')} {its[key]}, not {ours[key]}"
                for key in ("shape", "event_dim", "plates", "support")
                if ours[key] != its[key]
            ]
        if not lines and list(mine) != list(theirs):
            lines.append(f"the sites come in the order {list(theirs)}, not {list(mine)}")
        return "; ".join(lines) or None

    @staticmethod
    def _per_particle(ladj: Tensor, like: Tensor) -> Tensor:
        """Sum a transform's log-determinant over everything but the batch dimensions."""
        extra = tuple(range(like.dim(), ladj.dim()))
        return ladj.sum(extra) if extra else ladj

    @staticmethod
    def _batch_of(site: LatentSite, values: Mapping[str, Tensor]) -> torch.Size:
        if site.name not in values:
            raise ShapeError(
                f"The value of the latent site {site.name!r} is missing; got {sorted(values)}."
            )
        shape = torch.as_tensor(values[site.name]).shape
        cut = len(shape) - len(site.shape)
        if cut < 0 or tuple(shape[cut:]) != site.shape:
            raise ShapeError(
                f"The latent site {site.name!r} needs a value of shape (*b, "
                f"{', '.join(map(str, site.shape))}); got {tuple(shape)}."
            )
        return shape[:cut]

    @staticmethod
    def _check_support(site: LatentSite, value: Tensor, held: Tensor) -> None:
        # Rounding may leave the support by a little; what inside() repairs closely is accepted.
        if bool(torch.as_tensor(site.support.check(value)).all()):
            return
        near = torch.isclose(value, held, rtol=1e-4, atol=1e-6).all()
        if not (bool(near) and bool(torch.as_tensor(site.support.check(held)).all())):
            raise OptionError(
                f"A value of the latent site {site.name!r} lies outside its support "
                f"{site.support}. Pass constrained values, as guide.sample_posterior gives them."
            )
