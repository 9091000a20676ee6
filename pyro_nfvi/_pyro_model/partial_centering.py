"""Local latents relative to their prior given the globals, with a learned degree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_nfvi._math import bounded
from pyro_nfvi._pyro_model.constraints import bijection, inside
from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._pyro_model.model_run import SetSubsample
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._pyro_model.prior_moments import prior_moments
from pyro_nfvi._typing import Contexts, Image, Points, TensorDict, TensorPair
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow


def degree(free: Tensor) -> Tensor:
    """Return the degree of a free number: 1 at 0, non-centred, and less above it, to -0.25.

    The centred form, 0, is inside. Far below it, a site would be the wider the narrower its prior
    is. The start is non-centred, since a centred one whose rows are narrow draws the prior's scale
    down to them before the degree is learnt.
    """
    return 1 - torch.where(free > 0, bounded(free, 1.25), bounded(free, 0.25))


class _LastSite(Exception):
    """The model has drawn its last site of interest: what follows is of no use."""


class _Centre(Messenger):
    """Sets latents to images of given coordinates, at the priors that the model has for them."""

    def __init__(
        self,
        sites: Mapping[str, LatentSite],
        values: TensorDict,
        degrees: Mapping[str, Tensor],
        *,
        inverse: bool,
    ) -> None:
        super().__init__()
        self.sites, self.values, self.degrees = sites, values, degrees
        self.inverse = inverse
        self.images: TensorDict = {}
        self.log_scales: TensorDict = {}
        self.moments: dict[str, TensorPair] = {}
        self.missing = set(degrees)

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        site = self.sites.get(name)
        if site is None or msg["is_observed"]:
            return
        given = u = self.values[name]
        if name in self.degrees:
            found = prior_moments(msg["fn"], site.support)
            if found is not None:
                self.moments[name] = found
                loc, log_scale = (torch.broadcast_to(part.to(u), u.shape) for part in found)
                w = self.degrees[name]
                stretch = w * log_scale
                if self.inverse:
                    self.images[name] = (given - loc) * (-stretch).exp() + (1 - w) * loc
                else:
                    # At w = 0 exactly the identity.
                    factor = stretch.exp()
                    u = factor * given + loc * (1 - factor * (1 - w))
                    self.images[name] = u
                self.log_scales[name] = stretch
            self.missing.discard(name)
        msg["value"] = inside(site.support, bijection(site.support)(u))
        msg["done"] = True
        if not self.missing:
            raise _LastSite


@dataclass(frozen=True)
class PriorRun:
    """The model with its arguments, to be run as far as its last informed site.

    Attributes:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        nesting: Dimensions that plates take in it, from the right.
        drawn: For plates that the model subsamples itself, how many rows a run has.
        entire: For plates of which it has all rows, how many these are.
        vectorised: Whether several particles can be run at once.
        sites: Sites that are taken relative to their prior.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    nesting: int
    drawn: Mapping[str, int]
    entire: Mapping[str, int]
    vectorised: bool = False
    sites: tuple[str, ...] = ()

    def start(self, space: LatentSpace, rows: Mapping[str, Tensor]) -> TensorPair:
        """Return the coordinates of the initial vector relative to priors, and log-slopes there."""
        degrees = dict.fromkeys(self.sites, space.init_loc.new_ones(()))
        with torch.no_grad():
            return self.image(space, space.init_loc, rows, degrees, inverse=True)

    def moments(
        self, space: LatentSpace, z: Tensor, rows: Mapping[str, Tensor], sites: frozenset[str]
    ) -> dict[str, TensorPair]:
        """Return prior location and log-scale of sites at one vector ``(D,)``."""
        zero = z.new_zeros(())
        found = self._run(space, z, rows, dict.fromkeys(sites, zero), inverse=True)
        return found.moments

    def image(
        self,
        space: LatentSpace,
        x: Tensor,
        rows: Mapping[str, Tensor],
        degrees: Mapping[str, Tensor],
        *,
        inverse: bool,
    ) -> TensorPair:
        """Map ``x (*b, D)`` to the image and the log-slope of each coordinate, ``(*b, D)`` each."""
        flat = x.reshape(-1, x.shape[-1])
        together = len(flat) > 1 and self.vectorised
        images, slopes = list[Tensor](), list[Tensor]()
        for part in [flat] if together else flat.split(1):
            point = part if together else part[0]
            found = self._run(space, point, rows, degrees, inverse=inverse)
            image, slope = list[Tensor](), list[Tensor]()
            for site in space.records:
                before = part[:, site.start : site.stop]
                own = found.images.get(site.name)
                image.append(before if own is None else own.reshape(len(part), -1))
                change = found.log_scales.get(site.name)
                zero = torch.zeros_like(before)
                slope.append(zero if change is None else change.reshape(len(part), -1))
            images.append(torch.cat(image, -1))
            slopes.append(torch.cat(slope, -1))
        if not images:
            return x, torch.zeros_like(x)
        return torch.cat(images).reshape(x.shape), torch.cat(slopes).reshape(x.shape)

    def _run(
        self,
        space: LatentSpace,
        x: Tensor,
        rows: Mapping[str, Tensor],
        degrees: Mapping[str, Tensor],
        *,
        inverse: bool,
    ) -> _Centre:
        values = space.unpack(x)
        if x.dim() > 1:
            # Particles stand left of all plates.
            for site in space.records:
                pad = (1,) * (self.nesting - len(site.batch_shape))
                values[site.name] = values[site.name].reshape(
                    (len(x), *pad, *site.unconstrained_shape)
                )
        handler = _Centre(space.sites, values, degrees, inverse=inverse)
        try:
            # Handlers of the caller are no part of this run.
            with poutine.block(), SetSubsample(rows), handler:
                self.model(*self.args, **self.kwargs)
        except _LastSite:
            pass
        return handler


@dataclass(frozen=True)
class _Plan:
    """The rows of one plate in one run of the model.

    Attributes:
        cells: For each row of the run the row of the vector that fills it.
        taken: Rows of the vector whose images the run gives.
        back: The rows of the run that these are.
    """

    cells: Tensor
    taken: Tensor
    back: Tensor


@final
class PartialCentering(Flow):
    r"""Coordinates of local latents relative to their prior, from centred to non-centred.

    .. math:: z = \mu + \sigma^{w}\,(u - (1 - w)\,\mu)

    with location :math:`\mu` and scale :math:`\sigma` of the site's prior in the unconstrained
    space, given the latents that it depends on, and a degree w for each site: 0 is the centred
    form, the identity, and 1 the non-centred one, :math:`z = \mu + \sigma u`, where it starts. The
    model is run as far as its last such site; likelihoods are not evaluated.

    Args:
        run: The model.
        layout: The rows that the vector has.
        degrees: For each informed site the free number of :func:`degree`.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats, each row by its weight.

    Cost:
        One run of the model's prior; scores cost a second one.

    Source: Gorinova et al. 2020, arXiv:1906.03028, equation 4, with :math:`\lambda = 1 - w`.
    """

    def __init__(self, run: PriorRun, layout: PlateLayout, degrees: Mapping[str, Tensor]) -> None:
        super().__init__(layout.dim)
        self._model_run, self._layout = run, layout
        self._degrees = {name: degree(free) for name, free in degrees.items()}
        weights = [
            torch.full((site.stop - site.start,), self._weight(site.name))
            for site in layout.space.records
        ]
        self.register_buffer("weight", torch.cat(weights), persistent=False)
        self.weight: Tensor

    def _weight(self, name: str) -> float:
        return next(block.weight for block in self._layout.blocks if name in block.sites)

    def by_coordinates(self, x: Points, *, inverse: bool = False) -> TensorPair:
        """Map ``x`` to the image and the log-slope of each coordinate, unweighted."""
        run, layout = self._model_run, self._layout
        plans = [self._plans(plate) for plate in layout.sizes]
        if all(plan is None for plan in plans):
            rows = {p: index for p, index in layout.rows.items() if p not in run.entire}
            return run.image(layout.space, x, rows, self._degrees, inverse=inverse)
        image, slope = x, torch.zeros_like(x)
        choices = [
            [_Plan(every, every, every)] if plan is None else plan
            for plan, every in zip(plans, map(torch.arange, layout.sizes.values()))
        ]
        for chosen in itertools.product(*choices):
            plan = dict(zip(layout.sizes, chosen))
            cells = {plate: own.cells for plate, own in plan.items()}
            among = layout.at(cells, anew=frozenset(cells))
            rows = {
                plate: layout.rows[plate][own]
                for plate, own in cells.items()
                if plate in layout.rows and plate not in run.entire
            }
            given = x[..., layout.index(cells)]
            found = run.image(among.space, given, rows, self._degrees, inverse=inverse)
            places = layout.index({plate: own.taken for plate, own in plan.items()}).to(x.device)
            back = among.index({plate: own.back for plate, own in plan.items()})
            image, slope = (
                whole.index_copy(-1, places, part[..., back])
                for whole, part in zip((image, slope), found)
            )
        return image, slope

    def _plans(self, plate: str) -> list[_Plan] | None:
        """Say which rows each run has; None where one run has them as they are."""
        run, size = self._model_run, self._layout.sizes[plate]
        rows = self._layout.rows.get(plate)
        entire = run.entire.get(plate)
        if entire not in (None, size, self._layout.full_sizes[plate]):
            raise OptionError(
                f"The model has {entire} rows of the plate {plate!r} with these arguments; {size} "
                f"of {self._layout.full_sizes[plate]} are asked for. Pass the arguments for these "
                "rows, or those for all."
            )
        whole = entire == self._layout.full_sizes[plate] and plate not in self._layout.anew
        if whole and entire is not None and rows is not None:
            # Data stand at their rows' own places: the others are filled with any numbers.
            every, taken = torch.zeros(entire, dtype=torch.long), torch.arange(size)
            every[rows] = taken
            return [_Plan(every, taken, rows)]
        drawn = run.drawn.get(plate, size)
        if drawn == size:
            return None
        # The model has so many rows in a run, and no others: the last run has some again.
        plans = list[_Plan]()
        for start in range(0, size, drawn):
            taken = torch.arange(start, min(start + drawn, size))
            cells = (torch.arange(drawn) + start) % size
            plans.append(_Plan(cells, taken, torch.arange(len(taken))))
        return plans

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        y, slope = self.by_coordinates(x)
        return y, (self.weight.to(x) * slope).sum(-1)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        x, slope = self.by_coordinates(y, inverse=True)
        return x, -(self.weight.to(y) * slope).sum(-1)


def informed_sites(
    run: PriorRun, space: LatentSpace, rows: Mapping[str, Tensor]
) -> PriorRun | None:
    """Return the run with the sites whose prior depends on other latents; None if there is none.

    Also None where the model draws what the guide does not know, so that a prior is another one in
    each run, or where it cannot be run so.

    Args:
        run: The model.
        space: The vector of the rows of one run.
        rows: Rows of plates that the model draws.
    """
    local = frozenset(
        site.name for site in space.records if any(f.dim is not None for f in site.cond_indep_stack)
    )
    if not local:
        return None
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            z = (space.init_loc + 0.1).requires_grad_()
            first = run.moments(space, z, rows, local)
            again = run.moments(space, z, rows, local)
    except Exception:  # it fails in its own words where it is run in earnest
        return None
    found = [name for name, parts in first.items() if any(part.requires_grad for part in parts)]
    for name in found:
        if any(not torch.equal(a, b) for a, b in zip(first[name], again[name])):
            return None
    if not found:
        return None
    run = replace(run, sites=tuple(found))
    return replace(run, vectorised=True) if _runs_together(run, space, rows) else run


def _runs_together(run: PriorRun, space: LatentSpace, rows: Mapping[str, Tensor]) -> bool:
    """Tell whether two particles in one run come out as in a run each."""
    shift = torch.linspace(-0.2, 0.3, 2 * space.dim).to(space.init_loc).reshape(2, -1)
    x, degrees = space.init_loc + shift, dict.fromkeys(run.sites, space.init_loc.new_tensor(0.7))
    try:
        with torch.no_grad():
            alone = run.image(space, x, rows, degrees, inverse=False)
            both = replace(run, vectorised=True).image(space, x, rows, degrees, inverse=False)
    except Exception:  # of shapes that do not fit
        return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(alone, both))
