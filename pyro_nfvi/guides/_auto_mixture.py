"""``AutoMixture``: a weighted mixture of flows, one for each mode, as a Pyro autoguide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import init_to_median
from torch import Tensor, nn

from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._random import stream
from pyro_nfvi._validation import number, whole
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._whitened_affine import WhitenedAffine
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._build import FlowSpec, Recipe
from pyro_nfvi.guides._mixture_posterior import MixturePosterior
from pyro_nfvi.guides._param_store import check_store, stored_names, sync_module, sync_parameter
from pyro_nfvi.guides._points_guide import PointsGuide
from pyro_nfvi.guides._recipe import GUIDES


class AutoMixture(PointsGuide):
    r"""A mixture over the model's continuous latents, for posteriors with several modes.

    .. math:: q(z) = \sum_k w_k\, q_k(z)

    Each :math:`q_k` is a Gaussian of its own (full-rank up to 256 latents), or a flow inside one.
    The density is that of the mixture, not of a draw with its component, so the bound is exact.
    :class:`NFVI <pyro_nfvi.NFVI>` makes this guide by itself where it comes upon several modes,
    with one component on each; components that start in one place, as with plain ``SVI``, may
    well all end in one mode.

    With ``SVI`` and ``Trace_ELBO`` the gradient is unbiased for the weights too: a
    score-function term, averaged over the component that was chosen. Use some tens of particles
    with ``vectorize_particles=True``, which are each other's baseline; with one at a time that
    term is noise as large as the log joint. Other ELBOs of Pyro (``TraceMeanField_ELBO``,
    ``TraceGraph_ELBO``) leave the weights without it, and they drift.

    Args:
        model: A Pyro model.
        num_components: Number of components K.
        flow: The flow in each component, as for :class:`AutoFlow`, by name; or a list of K; None
            for Gaussians.
        init_loc_fn: Pyro's per-site initialisation.
        init_scale: Initial standard deviation of each unconstrained coordinate.
        init_spread: Standard deviation of the components' initial locations around the initial
            point, in the unconstrained space; fixed noise, the same for each guide.
        **flow_options: Options of the named flow.

    Shape:
        D is ``guide.latent.dim``.

    Cost:
        A draw that is scored costs a forward pass and an inverse of every component. An
        autoregressive flow takes D passes for its inverse.

    Raises:
        OptionError: A wrong option.
        ModelError: As :class:`AutoFlow`.

    Source: stratified mixtures as in Morningstar et al. 2020, arXiv:2003.01687; the baseline of
    Kool, van Hoof and Welling 2019 (Buy 4 REINFORCE samples, get a baseline for free).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_nfvi import AutoMixture
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 3.0))
        ...     pyro.sample("y", dist.Normal(x.abs(), 0.5), obs=torch.tensor(4.0))
        >>> guide = AutoMixture(model, num_components=2, init_spread=3.0)
        >>> elbo = Trace_ELBO(num_particles=32, vectorize_particles=True)
        >>> loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step()
        >>> guide.sample_posterior(5)["x"].shape, guide.weights.shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_components: int = 2,
        flow: FlowSpec | Sequence[FlowSpec] = None,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        init_spread: float = 1.0,
        **flow_options: Any,
    ) -> None:
        name = type(self).__name__
        check_model(name, model)
        count = whole(f"{name}: num_components", num_components)
        flows: list[Any] = list(flow) if isinstance(flow, list | tuple) else [flow] * count
        if len(flows) != count or any(isinstance(one, Flow) for one in flows):
            raise OptionError(
                f"{name} needs one flow by name for all components, or a list of {count}; got "
                f"{flow!r}. A Flow object cannot serve several components: pass a callable of the "
                "latent dimension."
            )
        recipes = [
            Recipe(name, one, "whitened", flow_options if one else {}, init_scale, None)
            for one in flows
        ]
        init_spread = number(f"{name}: init_spread", init_spread, least=0)
        super().__init__(model, init_loc_fn, None)
        # Names and callables until set-up; the flows themselves are modules from then on.
        self._recipes = recipes
        self._init_spread = init_spread

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.is_set_up:
            state["_recipes"] = [recipe.described() for recipe in self._recipes]
        return state

    def _build(self) -> None:
        loc = self.latent.init_loc
        parts = [_joined(*recipe.build(loc)) for recipe in self._recipes]
        self._check_store(parts)
        self.parts = nn.ModuleList(parts)
        self.logits = nn.Parameter(loc.new_zeros(len(parts)))
        with torch.no_grad():
            # A guide has no seed: it starts at the same place whenever it is built.
            noise = stream(0, "mixture")
            for part, recipe in zip(parts, self._recipes, strict=True):
                away = torch.randn(len(loc), generator=noise, dtype=torch.float64).to(loc)
                _place(part, loc + self._init_spread * away, recipe.init_scale)
        self._sync(adopt=True)

    def _check_store(self, parts: list[Flow]) -> None:
        if not self._uses_store():
            return
        full = self._pyro_get_fullname
        module = nn.ModuleList(parts)
        expected = {name: p.shape for name, p in stored_names(full("parts"), module)}
        expected[full("logits")] = torch.Size([len(parts)])
        check_store(expected, [full("parts"), full("logits")])

    def _uses_store(self) -> bool:
        return bool(self._pyro_context.active) and not pyro.settings.get("module_local_params")

    def _sync(self, *, adopt: bool = False) -> None:
        if not self._uses_store():
            return
        full = self._pyro_get_fullname
        sync_module(self, full("parts"), self._modules["parts"], adopt=adopt)
        sync_parameter(self, full("logits"), self, "logits", adopt=adopt)

    # ------------------------------------------------------------------------- its components

    @property
    def num_components(self) -> int:
        """Number of components K."""
        return len(self._recipes)

    @property
    def weights(self) -> Tensor:
        """Weights of the components ``(K,)``, detached; they sum to 1."""
        self._require_setup()
        return torch.softmax(self._logits().detach(), 0)

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Set the weights ``(K,)``: positive numbers, of any sum.

        Raises:
            OptionError: Another shape, or a number that is not positive.
        """
        self._require_setup()
        given = torch.as_tensor(weights).to(self._logits())
        if given.shape != (self.num_components,) or not bool((given > 0).all()):
            raise OptionError(f"weights are {self.num_components} positive numbers; got {weights}.")
        self._logits().copy_((given / given.sum()).log())

    @torch.no_grad()
    def start_at(self, locs: Tensor, factors: Tensor, weights: Tensor | None = None) -> None:
        r"""Move the components, with their flows as they are, to Gaussians.

        Args:
            locs: Means ``(K, D)``.
            factors: Lower triangular ``(K, D, D)``, or diagonals ``(K, D)``.
            weights: Weights ``(K,)``; equal by default.
        """
        self._require_setup()
        like = self._like()
        for part, loc, factor in zip(self._members(), locs, factors, strict=True):
            full = factor if factor.dim() == 2 else torch.diag(factor)
            scale = factor if factor.dim() == 1 else 1 / torch.linalg.inv(factor).norm(dim=-2)
            _outer(part).set_fixed(
                loc.to(like), (full if len(loc) <= GUIDES.full_dim else scale).to(like)
            )
        self.set_weights(like.new_ones(self.num_components) if weights is None else weights)

    @torch.no_grad()
    def adopt(self, guides: Sequence[AutoFlow]) -> None:
        """Copy trained guides with whitened maps into the components, one into each.

        Raises:
            OptionError: Another number of guides, or another flow than the component's.
        """
        self._require_setup()
        members = self._members()
        if len(guides) != len(members):
            raise OptionError(f"adopt takes {len(members)} guides; got {len(guides)}.")
        for member, guide in zip(members, guides, strict=True):
            try:
                member.load_state_dict(guide.transport().state_dict())
            except RuntimeError as error:
                raise OptionError(
                    "adopt takes guides with outer='whitened' and the flow of the component. "
                    f"{error}"
                ) from error

    def _members(self) -> list[Flow]:
        parts = self._modules["parts"]
        assert isinstance(parts, nn.ModuleList)
        return [part for part in parts if isinstance(part, Flow)]

    def _logits(self) -> nn.Parameter:
        logits = self._parameters["logits"]
        assert logits is not None
        return logits

    def _like(self) -> Tensor:
        return self._logits().detach().new_zeros(self.latent_dim)

    # --------------------------------------------------------------------------- the density

    def transport(self) -> Flow:
        """Refuse: a mixture is not one map of one noise vector.

        Raises:
            OptionError: Always; it says what to use.
        """
        raise OptionError(
            "A mixture of flows is not one map from noise to the posterior, which NeuTra and NUTS "
            "through the flow need: they would stay in one mode. Use guide.density(), or an "
            "AutoFlow."
        )

    def density(self) -> MixtureDensity:
        """Return the density of the unconstrained vector, for one call."""
        self._require_setup()
        self._sync()
        return MixtureDensity([FlowDensity(part) for part in self._members()], self._logits())

    def get_posterior(self, *args: Any, **kwargs: Any) -> MixturePosterior:
        """Return the distribution of the unconstrained vector, for one call."""
        return MixturePosterior(self.density())

    def _noise_dim(self) -> int:
        return self.latent_dim + 1


def _joined(flow: Flow | None, outer: Flow | None) -> Flow:
    assert outer is not None  # the whitened map of the recipe
    return outer if flow is None else Chain(flow, outer)


def _outer(part: Flow) -> WhitenedAffine:
    """Return the whitened map of a component, its last layer."""
    last = part.layers()[-1].flow
    assert isinstance(last, WhitenedAffine)
    return last


def _place(part: Flow, loc: Tensor, scale: float) -> None:
    """Put a component at a round Gaussian, all of it in what is trained and stored."""
    outer, ones = _outer(part), torch.ones_like(loc)
    outer.set_fixed(
        torch.zeros_like(loc), torch.diag(ones) if len(loc) <= GUIDES.full_dim else ones
    )
    outer.set_trained(loc, scale * ones)
