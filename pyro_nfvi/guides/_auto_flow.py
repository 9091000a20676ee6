"""``AutoFlow``: a normalizing flow over all continuous latents, as a Pyro autoguide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_median
from pyro.nn.module import PyroParam
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_nfvi._gaussian_vi.low_rank_gaussian import LowRankGaussian
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._typing import Factor, Location, TensorPair
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._affine import Affine
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._block_arrow import ArrowFactor
from pyro_nfvi.flows._conditional_affine import ConditionalStage
from pyro_nfvi.flows._mixture_map import MixtureBlocks
from pyro_nfvi.flows._whitened_affine import WhitenedAffine
from pyro_nfvi.guides._build import BaseSpec, FlowSpec, Recipe
from pyro_nfvi.guides._param_store import (
    check_store,
    release_entry,
    stored_names,
    sync_module,
    sync_parameter,
)
from pyro_nfvi.guides._quantiles import base_points, pushed_quantiles
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.guides._vector_guide import VectorGuide


class AutoFlow(VectorGuide):
    r"""A normalizing flow over the model's continuous latents, drop-in for ``AutoNormal``.

    .. math::
        \varepsilon \sim N(0, I) \;\to\; \text{flow} \;\to\; z = \mu + \sigma\,y
        \;\to\; \text{constrained sites}

    The affine map outside takes its location from ``init_loc_fn`` and its scale from
    ``init_scale``; the flow starts as the identity. At the start the guide *is*
    ``AutoDiagonalNormal`` (``AutoMultivariateNormal`` with ``outer="full"``).

    Everything of Pyro's works with it: ``SVI``, the ELBOs and their Jit versions, plates and
    vectorised particles, ``Predictive``, ``AutoGuideList``, ``NeuTraReparam`` (except for sites
    that are Cholesky factors or covariance matrices, for which Pyro has other bijections or none).
    Discrete sites marked for enumeration are left to ``TraceEnum_ELBO``.

    A new guide continues from the values that Pyro's param store holds under its class name;
    from then on its parameters are its own, whatever else comes into the store.

    Args:
        model: A Pyro model.
        flow: A name or formula (:func:`pyro_nfvi.flows.make_flow`), a :class:`Flow`, a callable
            from the latent dimension to a flow (or to a transform, which is adapted), or None
            for no layers.
        outer: ``"diagonal"``, ``"full"`` (a Cholesky factor; for correlated posteriors),
            ``"whitened"`` (an affine map trained relative to a fixed one, which :class:`NFVI
            <pyro_nfvi.NFVI>` takes from a Gaussian fit), or a flow of your own in its place.
        base: Where the noise comes from; the standard normal by default. One of
            :mod:`pyro_nfvi.distributions`, or a callable of the latent dimension such as
            ``StudentT``: its location, scale and correlations are trained as a map in front of
            the flow, while degrees of freedom and mixtures keep their shape, since draws carry no
            gradient to them. Or a distribution over vectors of the latent dimension, which is
            fixed.
        init_loc_fn: Pyro's per-site initialisation.
        init_scale: Initial standard deviation of each unconstrained coordinate.
        **flow_options: Options of the named flow, such as ``hidden_dim``.

    Shape:
        D is the number of unconstrained coordinates, ``guide.latent.dim``, known after
        ``setup``.

    Cost:
        One forward pass of the flow per draw; ``log_prob`` of other points costs an inverse.

    Raises:
        OptionError: A wrong option, at once.
        ModelError: The model has no latents, an unmarked discrete one, a subsampled local one,
            or changes its structure; the message names the site and the cure.
        ParamStoreError: Pyro's store holds other parameters under the guide's name.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, on the vector of Kucukelbir et al. 2017,
    arXiv:1603.00788.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_nfvi import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> guide = AutoFlow(model, flow="planar*4")
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> loss = svi.step(y)
        >>> guide.sample_posterior(5)["mu"].shape
        torch.Size([5])
    """

    scale_constraint = dist.constraints.softplus_positive
    scale_tril_constraint = dist.constraints.unit_lower_cholesky

    def __init__(
        self,
        model: Callable[..., Any],
        flow: FlowSpec = "iaf*2",
        *,
        outer: str | Flow = "diagonal",
        base: BaseSpec = None,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        **flow_options: Any,
    ) -> None:
        name = type(self).__name__
        check_model(name, model)
        recipe = Recipe(name, flow, outer, flow_options, init_scale, base)
        super().__init__(model, init_loc_fn, base if isinstance(base, Distribution) else None)
        # Past registration, as the flow below; a guide that has one is not the standard one's.
        self.__dict__["_base"] = base
        # Holds the flow until set-up: registering it earlier would confuse AutoGuideList.
        self._recipe: Recipe | None = recipe
        self._outer_kind = outer if isinstance(outer, str) else "flow"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.is_set_up and self._recipe is not None:
            # The flow itself is among the modules by now.
            state["_recipe"] = self._recipe.described()
        return state

    def _build(self) -> None:
        recipe = self._recipe
        assert recipe is not None  # set-up does not run on a guide loaded from a file
        loc, dim = self.latent.init_loc, self.latent.dim
        flow, outer = recipe.build(loc)
        base = recipe.build_base(loc)
        place, noise = base.divide() if isinstance(base, Base) else (None, None)
        self._check_store(flow, outer, place)
        self.flow = flow
        self.outer = outer
        if isinstance(base, Base):
            self.__dict__["_base"] = base
            self.place, self.noise = place, noise
        if outer is None:
            scale = torch.full_like(loc, float(recipe.init_scale))
            self.loc = nn.Parameter(loc.clone())
            self.scale = PyroParam(scale, self.scale_constraint)
        if self._outer_kind == "full":
            eye = torch.eye(dim, dtype=loc.dtype, device=loc.device)
            self.scale_tril = PyroParam(eye, self.scale_tril_constraint)
        self._sync(adopt=True)

    def _uses_store(self) -> bool:
        return bool(self._pyro_context.active) and not pyro.settings.get("module_local_params")

    def _check_store(self, flow: Flow | None, outer: Flow | None, place: Flow | None) -> None:
        if not self._uses_store():
            return
        full = self._pyro_get_fullname
        expected = {
            name: parameter.shape
            for part, module in (("flow", flow), ("outer", outer), ("place", place))
            for name, parameter in stored_names(full(part), module)
        }
        size = torch.Size([self.latent_dim])
        if outer is None:
            expected |= {full("loc"): size, full("scale"): size}
        if self._outer_kind == "full":
            expected[full("scale_tril")] = size + size
        check_store(
            expected,
            [full(part) for part in ("flow", "outer", "place", "loc", "scale", "scale_tril")],
        )

    def _sync(self, *, adopt: bool = False) -> None:
        if not self._uses_store():
            return
        full = self._pyro_get_fullname
        for part in ("flow", "outer", "place"):
            sync_module(self, full(part), self._part(part), adopt=adopt)
        if "loc" in self._parameters:
            sync_parameter(self, full("loc"), self, "loc", adopt=adopt)
        for name in ("scale", "scale_tril"):
            own = self._parameters.get(f"{name}_unconstrained")
            if own is not None and not adopt:
                release_entry(self, full(name), own)

    def start_at(self, loc: Location, factor: Factor) -> None:
        r"""Move the guide, with its flow as it is, to the Gaussian :math:`N(m, LL^\top)`.

        A diagonal outer map takes the standard deviations of each coordinate given the others,
        those of the best diagonal Gaussian; ``"full"`` and ``"whitened"`` take all of it.

        Args:
            loc: Mean ``(D,)``.
            factor: L: lower triangular ``(D, D)``, or the diagonal alone ``(D,)``.

        Raises:
            OptionError: The outer map is a flow of your own.
        """
        self._require_setup()
        full = factor if factor.dim() == 2 else torch.diag(factor)
        scale = factor if factor.dim() == 1 else 1 / torch.linalg.inv(factor).norm(dim=-2)
        like, kind = self._like(), self._outer_kind
        if kind == "flow":
            raise OptionError("start_at sets an outer map of the guide's own, not your flow.")
        with torch.no_grad():
            outer = self._part("outer")
            if isinstance(outer, WhitenedAffine):
                outer.set_fixed(loc, full if len(loc) <= GUIDES.full_dim else scale)
                return
            self.loc.copy_(loc)
            if kind == "diagonal":
                self.scale = scale.to(like)
            else:
                self.scale = full.diagonal().to(like)
                self.scale_tril = (full / full.diagonal().unsqueeze(-1)).to(like)

    @property
    def takes_arrow(self) -> bool:
        """True where the outer map can be a block arrow: a whitened one of many latents."""
        outer = self._part("outer")
        return isinstance(outer, WhitenedAffine) and outer.dim > GUIDES.full_dim

    def start_at_arrow(self, loc: Location, factor: ArrowFactor) -> None:
        r"""Move the guide, with its flow as it is, to the Gaussian :math:`N(m, TT^\top)`.

        Args:
            loc: Mean ``(D,)``.
            factor: T, a block arrow.

        Raises:
            OptionError: The outer map is not ``"whitened"``, or the model has so few latents that
                it is full.
        """
        self._require_setup()
        outer = self._part("outer")
        if not (isinstance(outer, WhitenedAffine) and self.takes_arrow):
            raise OptionError(
                f"start_at_arrow needs outer='whitened' and more than {GUIDES.full_dim} latents; "
                f"got outer={self._outer_kind!r} and {len(self._like())} latents. Use "
                "start_at(loc, factor)."
            )
        outer.set_arrow(loc, factor)

    def start_at_mixture(self, blocks: Sequence[MixtureBlocks]) -> None:
        """Move the guide, with its flow as it is, to a product of Gaussian mixtures.

        Args:
            blocks: Mixtures of blocks of coordinates; each coordinate is in one.

        Raises:
            OptionError: The outer map is not ``"whitened"``.
        """
        self._require_setup()
        outer = self._part("outer")
        if not isinstance(outer, WhitenedAffine):
            raise OptionError(
                f"start_at_mixture needs outer='whitened'; got outer={self._outer_kind!r}."
            )
        outer.set_mixture(blocks)

    def start_at_conditional(
        self, loc: Location, factor: Factor, stages: Sequence[ConditionalStage]
    ) -> None:
        """Move the guide, with its flow as it is, to a Gaussian of coordinates relative to others.

        Args:
            loc: Its mean ``(D,)``.
            factor: L: lower triangular ``(D, D)``, or the diagonal alone ``(D,)``.
            stages: Coordinates whose location and scale follow others.

        Raises:
            OptionError: The outer map is not ``"whitened"``.
        """
        self._require_setup()
        outer = self._part("outer")
        if not isinstance(outer, WhitenedAffine):
            raise OptionError(
                f"start_at_conditional needs outer='whitened'; got outer={self._outer_kind!r}."
            )
        outer.set_conditional(loc, factor, stages)

    @property
    def holds_mixture(self) -> bool:
        """True where the guide stands on a product of Gaussian mixtures."""
        outer = self._part("outer")
        return isinstance(outer, WhitenedAffine) and outer.holds_mixture

    @property
    def holds_conditional(self) -> bool:
        """True where the guide stands on a Gaussian of coordinates relative to others."""
        outer = self._part("outer")
        return isinstance(outer, WhitenedAffine) and outer.holds_conditional

    def start_along(self, found: LowRankGaussian) -> None:
        """Move the guide, with its flow as it is, to a Gaussian with a few directions.

        Args:
            found: What :func:`pyro_nfvi._gaussian_vi.low_rank_gaussian.add_directions` found.

        Raises:
            OptionError: The outer map is not ``"whitened"``, or the model has so few latents that
                it is full.
        """
        self._require_setup()
        like, outer = self._like(), self._part("outer")
        if not isinstance(outer, WhitenedAffine) or len(like) <= GUIDES.full_dim:
            raise OptionError(
                f"start_along needs outer='whitened' and more than {GUIDES.full_dim} latents; got "
                f"outer={self._outer_kind!r} and {len(like)} latents. Use start_at(loc, factor)."
            )
        outer.set_directions(found.loc, found.scale, found.directions, found.stretch)
        outer.set_trained(found.inner_loc, found.inner_scale)

    # -------------------------------------------------------------------------- the density

    def transport(self) -> Flow:
        """Return the whole map, from base noise to the unconstrained vector, for one call."""
        self._require_setup()
        self._sync()
        flow, outer = self._inner(), self._part("outer")
        if outer is None:
            outer = self._affine(self.loc)
        return outer if flow is None else Chain(flow, outer)

    def _inner(self) -> Flow | None:
        """Return all that stands before the outer map: the base's own map, then the flow."""
        place, flow = self._part("place"), self._part("flow")
        if place is None or flow is None:
            return flow if place is None else place
        return Chain(place, flow)

    def _noise(self) -> Distribution | Base | None:
        if isinstance(self._base, Distribution):
            return self._base
        noise = self._modules.get("noise")
        return noise if isinstance(noise, Base) else None

    def _part(self, name: str) -> Flow | None:
        # Past PyroModule's attribute access, which would register the module once more.
        part = self._modules.get(name)
        return part if isinstance(part, Flow) else None

    def _affine(self, loc: Tensor) -> Affine:
        if self._outer_kind == "full":
            return Affine(loc, scale_tril=self.scale.unsqueeze(-1) * self.scale_tril)
        return Affine(loc, self.scale)

    def _like(self) -> Tensor:
        """Return a vector of size D with the parameters' dtype and device."""
        if "loc" in self._parameters:
            return self._parameters["loc"].detach()
        outer = self._part("outer")
        owned = [] if outer is None else list(outer.parameters())
        return (owned[0] if owned else self.latent.init_loc).new_zeros(self.latent_dim)

    def _levels(self, levels: Tensor) -> TensorPair:
        if self._outer_kind not in ("diagonal", "full"):
            return super()._levels(levels)
        self._sync()
        points = base_points(self._like(), self._noise())
        loc: Tensor = self.loc
        centred, flow = self._affine(torch.zeros_like(loc)), self._inner()
        return loc, pushed_quantiles(points, flow, centred, levels)
