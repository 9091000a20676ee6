"""``PyroGuide``: a guide of Pyro's own, or one written by hand, with a density at every point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer.autoguide import (
    AutoCallable,
    AutoContinuous,
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoNormal,
)
from torch import Tensor, nn
from torch.distributions import TransformedDistribution, biject_to
from torch.distributions.transforms import ComposeTransform

from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._interop import adapt
from pyro_nfvi.guides._density_posterior import DensityPosterior
from pyro_nfvi.guides._guide_parts import GuidePart, SitesPart, VectorPart, no_store
from pyro_nfvi.guides._parts_density import PartsDensity
from pyro_nfvi.guides._points_guide import PointsGuide


class PyroGuide(PointsGuide):
    r"""A guide of Pyro's own, or one written by hand, as :class:`NFVI` trains and judges it.

    .. math:: \log q(z) = \log q(\theta(z)) + \log|\partial\theta/\partial z|

    Its parameters are those of the guide, trained in place. ``AutoContinuous`` guides and
    ``AutoNormal`` have a distribution of the whole vector; of a guide written by hand each site
    is drawn from noise and scored by itself, at all draws together.

    Args:
        model: The model.
        own: An ``AutoContinuous``, ``AutoNormal`` or ``AutoGuideList`` of such; or a function, or
            module, that draws the model's latent sites by name.

    Shape:
        D is ``guide.latent.dim``; noise has E numbers, which may be more (a low-rank Gaussian).

    Raises:
        OptionError: At set-up: a guide without a density (``AutoDelta``), one with auxiliary
            sites, or one of other sites than the model's.

    Source: Kucukelbir et al. 2017, arXiv:1603.00788.
    """

    def __init__(self, model: Callable[..., Any], own: Any) -> None:
        super().__init__(model)
        self.__dict__["_own"] = own
        self.__dict__["_parts"] = ()
        self.__dict__["_call"] = ((), {})

    @property
    def own(self) -> Any:
        """The guide that was passed."""
        return self.__dict__["_own"]

    @property
    def name(self) -> str:
        """Name of its class, or of the function."""
        own = self.own
        if isinstance(own, nn.Module):
            return type(own).__name__
        return str(getattr(own, "__name__", type(own).__name__))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_call"] = (args, kwargs)
        super()._setup_prototype(*args, **kwargs)

    def _build(self) -> None:
        own, (args, kwargs) = self.own, self.__dict__["_call"]
        if isinstance(own, AutoGuide):
            _check_kinds(own)
            with no_store(), poutine.block():
                own(*args, **kwargs)  # sets it up
        if isinstance(own, nn.Module):
            # Past PyroModule's registration, which would make a list's part of it.
            self._modules["guide"] = own
        parts = list(self._parts_of(own))
        self.__dict__["_parts"] = tuple(parts)
        held = {id(parameter) for parameter in self.parameters()}
        leaves = [leaf for part in parts for leaf in getattr(part, "leaves", {}).values()]
        for number, leaf in enumerate(one for one in leaves if id(one) not in held):
            parameter = leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf)
            self._parameters[f"param_{number}"] = parameter
            for part in parts:
                if isinstance(part, SitesPart):
                    part.replace_leaf(leaf, parameter)
        places = torch.cat([part.places for part in parts]).sort().values
        if places.tolist() != list(range(self.latent.dim)):
            missing = sorted(set(range(self.latent.dim)) - set(places.tolist()))
            where = self.latent.at(missing[0]) if missing else "a site, twice"
            raise OptionError(
                f"{self.name} has to draw each latent of the model once; at fault is {where}."
            )
        self._try()

    def _parts_of(self, own: Any) -> Iterator[GuidePart]:
        if isinstance(own, AutoGuideList):
            for part in own:
                yield from self._parts_of(part)
        elif isinstance(own, AutoNormal):
            yield self._vector_part(lambda: _mean_field(own, self._names_of(own)), own)
        elif isinstance(own, AutoContinuous):
            args, kwargs = self.__dict__["_call"]
            posterior = own.get_posterior(*args, **kwargs)
            if isinstance(posterior, TransformedDistribution):
                # Which refuses transforms that are wrong, or score no points.
                adapt(ComposeTransform(list(posterior.transforms)), self._places(own).numel())
            yield self._vector_part(lambda: own.get_posterior(*args, **kwargs), own)
        elif isinstance(own, AutoGuide) and not isinstance(own, AutoCallable):
            raise OptionError(
                f"{type(own).__name__} has no density of the latents alone that NFVI could train "
                "and judge. Take an AutoContinuous guide, AutoNormal, or a flow; or train it with "
                "pyro.infer.SVI, and convert it with pyro_nfvi.to_arviz."
            )
        else:
            function = own._guide if isinstance(own, AutoCallable) else own
            args, kwargs = self.__dict__["_call"]
            # Of a list's part others have the rest.
            names: frozenset[str] | None = frozenset() if function is not own else None
            yield SitesPart(function, args, kwargs, self.latent, names)

    def _vector_part(self, posterior: Callable[[], Any], own: AutoGuide) -> VectorPart:
        places, held = self._places(own), posterior().event_shape
        if tuple(held) != tuple(places.shape):
            raise OptionError(
                f"{type(own).__name__} was set up for {math.prod(held)} latents, and the model has "
                f"{len(places)} there now. Build a guide for this data, or pass its class."
            )
        return VectorPart(posterior, places)

    def _names_of(self, own: AutoGuide) -> list[str]:
        return [name for name, _ in own.prototype_trace.iter_stochastic_nodes()]

    def _places(self, own: AutoGuide) -> Tensor:
        """Coordinates of a guide's vector in that of the latent space."""
        sites, places = self.latent.sites, []
        for name in self._names_of(own):
            if name not in sites:
                raise OptionError(
                    f"{type(own).__name__} draws {name!r}, which is no continuous latent site of "
                    "the model that is fitted. Build it for poutine.block(model, hide=[...]) "
                    "without discrete sites, which are summed out."
                )
            site = sites[name]
            places.append(torch.arange(site.start, site.stop, device=self.latent.init_loc.device))
            u = torch.linspace(-0.4, 0.7, site.stop - site.start).to(self.latent.init_loc)
            value = bijection(site.support)(u.reshape(site.unconstrained_shape))
            back = biject_to(site.support).inv(value).reshape(-1)
            if back.shape != u.shape or not torch.allclose(back, u, rtol=1e-3, atol=1e-4):
                raise OptionError(
                    f"{type(own).__name__} writes the site {name!r} in other coordinates than "
                    "NFVI. For the same Gaussian take pyro_nfvi.AutoFlow(model, None, "
                    "outer='full')."
                )
        return torch.cat(places)

    @torch.no_grad()
    def _try(self) -> None:
        """Refuse a guide of which a draw, or a point beside it, cannot be scored."""
        density = self.density()
        z, log_q = density.push(torch.linspace(-0.6, 0.9, density.noise_dim).to(self._like()))
        try:
            again = density.log_prob(z.clone())
        except Exception as error:
            raise OptionError(
                f"{self.name} cannot score given points, which the bound's gradient and the "
                f"verdict need: {type(error).__name__}: {error}"
            ) from error
        off = (again - log_q).abs() > 1e-2 * (1 + log_q.abs())
        if bool(off) and bool(log_q.isfinite()):
            raise OptionError(
                f"{self.name} gives a draw the log density {float(log_q):.4g}, and "
                f"{float(again):.4g} where the same point is scored. It is to be one density: no "
                "randomness beside its sites, and no state that moves."
            )

    # -------------------------------------------------------------------------- the density

    def _noise_dim(self) -> int:
        return sum(part.noise for part in self.__dict__["_parts"])

    def density(self) -> PartsDensity:
        """Return the density of the unconstrained vector, for one call."""
        self._require_setup()
        return PartsDensity(self.__dict__["_parts"], self._like())

    def density_at(self, rows: Any) -> PartsDensity:
        return self.density()

    def transport(self) -> Flow:
        """Refuse: the guide is no flow.

        Raises:
            OptionError: Always; it says what to use.
        """
        raise OptionError(
            f"{self.name} is a density, and no flow that NeuTra or chains could go through. Use "
            "guide.density(), or fit with guide='gaussian'."
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> DensityPosterior:
        """Return the distribution of the unconstrained vector, for one call."""
        return DensityPosterior(self.density())

    def __getstate__(self) -> dict[str, Any]:
        raise OptionError(
            f"A fit of {self.name} cannot be copied or pickled. Keep its draws, "
            "fit.to_arviz(), or its numbers, torch.save(fit.guide.state_dict(), path)."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> PyroGuide:
        self.__getstate__()
        raise AssertionError  # __getstate__ has raised


def _check_kinds(own: AutoGuide) -> None:
    """Refuse guides that have no density, before anything is run."""
    if isinstance(own, AutoGuideList):
        for part in own:
            _check_kinds(part)
    elif isinstance(own, AutoDelta):
        raise OptionError(
            "AutoDelta is a point, which has no density: there is no bound, and nothing to judge. "
            "Take guide='laplace', a Gaussian at the highest point; or fit the point with "
            "pyro.infer.SVI."
        )
    elif isinstance(own, AutoLaplaceApproximation):
        raise OptionError(
            "AutoLaplaceApproximation is a point until it is trained, and cannot be a part of "
            "another guide. Take guide='laplace' for the whole model."
        )
    elif isinstance(own, AutoDiscreteParallel):
        raise OptionError(
            "AutoDiscreteParallel draws discrete sites, which NFVI sums out. Leave it out."
        )


def _mean_field(own: AutoNormal, names: list[str]) -> Any:
    pairs = [own._get_loc_and_scale(name) for name in names]
    loc, scale = (torch.cat([pair[i].reshape(-1) for pair in pairs]) for i in range(2))
    return Normal(loc, scale).to_event(1)
