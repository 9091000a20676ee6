"""A density: a base distribution pushed through a flow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._random import seeded
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, Rows
from pyro_nfvi._validation import sizes, whole
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.distributions._density import Density
from pyro_nfvi.distributions._dequantization import Dequantizer, check_dequantizer
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._base import Flow

if TYPE_CHECKING:
    from pyro_nfvi.distributions._maximum_likelihood import DensityFit


@final
class FlowDensity(Density):
    r"""The distribution of :math:`z = f(\varepsilon)` for a flow f and base noise.

    .. math:: \log q(z) = \log q_0(\varepsilon) - \log|\det \partial z/\partial\varepsilon|

    Sampling and scoring come from one pass (``push``); nothing is remembered in between. Nets with
    dropout or batch normalisation are evaluated: a density has one value at a point. ``fit`` trains
    them in the modes that they are in, and so does what is computed inside
    :func:`pyro_nfvi.vae.training_pass`. Under autocast all is in full precision.

    Args:
        flow: The flow, from the base to z.
        base: The standard normal by default; a :class:`pyro_nfvi.distributions.Base`, whose
            parameters become the density's; or a ``torch.distributions`` distribution over
            vectors of size D with ``rsample``. With ``UniformAngles`` z are angles in
            :math:`[-\pi, \pi)`, and the density has the same value a whole turn further.

    Shape:
        Noise and points are ``(*b, D)``, log densities ``(*b,)``, in nats.

    Cost:
        ``push`` costs one forward pass, ``log_prob`` one inverse.

    Raises:
        OptionError: The base is not a distribution over vectors of size D, or it is one of angles
            and the flow is not.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import make_flow
        >>> density = FlowDensity(make_flow("planar*4", dim=3))
        >>> z, log_q = density.rsample_and_log_prob((7,))
        >>> bool(torch.allclose(density.log_prob(z), log_q, atol=1e-4))
        True
    """

    def __init__(self, flow: Flow, base: Base | Distribution | None = None) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise OptionError(
                f"FlowDensity needs a Flow; got {flow!r}. Build one with make_flow(formula, dim), "
                "or take one of Pyro or Zuko with flows.adapt."
            )
        if base is not None:
            _check_base(base, flow.dim)
            _check_circle(base, flow)
        self.flow = flow
        self.base = base
        self.periodic = isinstance(base, Base) and base.periodic
        self._somewhere = _point_of(base)  # where its density is not 0

    def __repr__(self) -> str:
        base = "" if self.base is None else f", base={self.base!r}"
        return f"{type(self).__name__}({self.flow!r}{base})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        base = "the standard normal" if self.base is None else repr(self.base)
        parts = (_html.table((), [("base", base)]), self.flow._repr_html_())
        return _html.card(f"{type(self).__name__} of {self.flow.dim} numbers", *parts)

    @property
    def takes_generator(self) -> bool:
        """True if base noise can be drawn from a generator of the caller's."""
        return self.base is None or isinstance(self.base, Base)

    def representative(self, z: Points) -> Points:
        if not self.periodic:
            return z
        from pyro_nfvi.flows._angles import wrap_angle

        return wrap_angle(z)

    def _prototype(self) -> Tensor:
        """Return a tensor with the density's dtype and device."""
        parts = [self.flow, self.base] if isinstance(self.base, Base) else [self.flow]
        for part in parts:
            for tensor in itertools.chain(part.parameters(), part.buffers()):
                if tensor.is_floating_point():
                    return tensor
        return torch.empty(())

    def _check_context(self, context: object) -> None:
        """Raise for a context that has no shape to draw for; the flow checks the rest."""
        if not (context is None or isinstance(context, Tensor)):
            raise ShapeError(
                f"FlowDensity needs a tensor as context, (*b, {self.flow.context_dim}); got "
                f"{type(context).__name__}: torch.as_tensor(context)."
            )

    @full_precision
    def sample_base(
        self,
        shape: int | Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw base noise ``(*shape, D)``.

        A ``generator`` leaves torch's global random state alone; it needs the standard normal
        or a :class:`pyro_nfvi.distributions.Base`.
        """
        size = sizes(shape)
        like = self._prototype()
        if self.base is None:
            return torch.randn(
                *size, self.flow.dim, dtype=like.dtype, device=like.device, generator=generator
            )
        if isinstance(self.base, Base):
            with scoring(self.base):
                return self.base.rsample(size, generator=generator)
        if generator is not None:
            raise OptionError(
                f"A base of torch.distributions ({type(self.base).__name__}) draws from torch's "
                "global random state: leave the generator out, or take a base of "
                "pyro_nfvi.distributions."
            )
        noise: Tensor = self.base.rsample(torch.Size(size))
        return noise

    @full_precision
    def base_log_prob(self, eps: Points) -> Rows:
        """Log density of base noise."""
        if self.base is None:
            return standard_normal_log_prob(eps).sum(-1)
        if isinstance(self.base, Base):
            return self.base.log_prob(eps)
        if self._somewhere is None:
            found: Tensor = self.base.log_prob(eps)
            return found
        # No error, but zero density, where a base such as a Beta has nothing.
        support: Any = self.base.support
        inside: Tensor = support.check(eps)
        found = self.base.log_prob(torch.where(inside.unsqueeze(-1), eps, self._somewhere))
        return torch.where(inside, found, torch.where(eps.isnan().any(-1), math.nan, -math.inf))

    @full_precision
    def push(self, eps: Points, context: Contexts | None = None) -> Image:
        """Map noise to ``(z, log_q)``, differentiable in the flow's parameters."""
        with scoring(self):
            z, ladj = self.flow(eps, context)
            return self.representative(z), self.base_log_prob(eps) - ladj

    @full_precision
    def push_with_score(self, eps: Points, context: Contexts | None = None) -> ImageAndScore:
        r"""Map noise to ``(z, log_q, score)``, the score :math:`\nabla_z \log q(z)` detached."""
        with scoring(self):
            if self.base is None:
                score = -eps.detach()
            else:
                with torch.enable_grad():
                    point = eps.detach().requires_grad_()
                    (score,) = torch.autograd.grad(self.base_log_prob(point).sum(), point)
            z, ladj, pushed = self.flow.forward_with_score(eps, score, context)
            return self.representative(z), self.base_log_prob(eps) - ladj, pushed

    def rsample_and_log_prob(
        self,
        shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Image:
        """Draw ``(z, log_q)`` in one pass, reparametrised.

        With a context ``(*b, C)`` the draws are ``(*shape, *b, D)``.
        """
        size = sizes(shape)
        self._check_context(context)
        batch = () if context is None else tuple(context.shape[:-1])
        return self.push(self.sample_base((*size, *batch), generator=generator), context)

    @full_precision
    def log_prob(self, z: Points, context: Contexts | None = None) -> Rows:
        """Score any point: ``(*b, D) -> (*b,)``, differentiable in the point and parameters."""
        if not isinstance(z, Tensor):
            raise ShapeError(
                f"FlowDensity.log_prob needs a tensor (*b, {self.flow.dim}); got "
                f"{type(z).__name__}: torch.as_tensor(z)."
            )
        if z.dim() == 0 or z.shape[-1] != self.flow.dim:
            raise ShapeError(
                f"FlowDensity.log_prob needs points of shape (*b, {self.flow.dim}); got "
                f"{tuple(z.shape)}."
            )
        # Nothing is at infinity, where differences of infinite numbers, and gradients, are NaN.
        infinite = z.isinf().any(-1) & ~z.isnan().any(-1)
        with scoring(self):
            eps, ladj = self.flow.inverse(torch.where(infinite.unsqueeze(-1), 0, z), context)
            return torch.where(infinite, -math.inf, self.base_log_prob(eps) + ladj)

    # So that functional_call can score with other parameters.
    forward = log_prob

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the density as a distribution over vectors, for torch and for ``pyro.sample``.

        With a context ``(*b, C)`` its batch shape is ``b``. Built for one call: a prior or a
        likelihood asks for it anew each time the model runs. To train its parameters within a
        model, register them with ``pyro.module("name", density)``; to hold them,
        ``density.requires_grad_(False)``.

        Example:
            >>> import pyro
            >>> from pyro_nfvi import FlowDensity
            >>> from pyro_nfvi.flows import make_flow
            >>> density = FlowDensity(make_flow("planar*2", dim=3))
            >>> pyro.sample("x", density.distribution()).shape
            torch.Size([3])
        """
        from pyro_nfvi._pyro_model.flow_distribution import FlowDistribution

        self._check_context(context)
        return FlowDistribution(self, context)

    def fit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        valid: float | Tensor | tuple[Tensor, Tensor] = 0.1,
        **options: Any,
    ) -> DensityFit:
        """Fit the parameters to data ``(n, D)`` by maximum likelihood, in place.

        Options, report: :func:`~pyro_nfvi.distributions._maximum_likelihood.fit_density`.
        """
        from pyro_nfvi.distributions._maximum_likelihood import fit_density

        return fit_density(self, x, context, valid=valid, **options)

    def bits_per_dim(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        dequantize: Dequantizer | None = None,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Bits per dimension of each row: ``(*b, D) -> (*b,)``, without gradient.

        .. math:: -\log_2 q(x) / D

        For continuous data this depends on the unit of x. For integers pass a dequantiser: then it
        is an **upper bound** of :math:`-\log_2 P(x) / D` in expectation over the dequantising
        noise, tighter with more ``num_samples`` (their weights are averaged inside the logarithm).
        """
        check_dequantizer(dequantize)
        num_samples = whole("bits_per_dim: num_samples", num_samples)
        with torch.no_grad():
            if dequantize is None:
                log_p = self.log_prob(x, context)
            else:
                log_p = dequantize.log_bound(
                    self, x, context, num_samples=num_samples, generator=generator
                )
        return -log_p / (self.flow.dim * math.log(2))


def _point_of(base: Base | Distribution | None) -> Tensor | None:
    """Return a point of a distribution that is on part of the reals; None if it is on all."""
    if base is None or isinstance(base, Base):
        return None
    support: Any = base.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support in (constraints.real, constraints.real_vector):
        return None
    with seeded(0, "density"):  # any point of the support will do
        point: Tensor = base.sample()
    return point


def _check_circle(base: Base | Distribution, flow: Flow) -> None:
    """Raise for a base of angles behind which the flow would leave the circle."""
    if isinstance(base, Base) and base.periodic and not flow.periodic:
        strays = [layer.flow for layer in flow.layers() if not layer.flow.periodic]
        names = sorted({type(stray).__name__ for stray in strays})
        raise OptionError(
            f"FlowDensity needs a flow of angles with {type(base).__name__}; "
            f"{', '.join(names) or type(flow).__name__} moves real numbers. Take 'ncsf' or "
            "'moebius', or another base."
        )


def _check_base(base: Base | Distribution, dim: int) -> None:
    """Raise unless noise over vectors of size D can be drawn from it with gradient."""
    if not isinstance(base, Base | Distribution):
        raise OptionError(
            "FlowDensity needs a base of pyro_nfvi.distributions or of torch.distributions, "
            "or None; got "
            f"{base!r}."
        )
    if tuple(base.event_shape) != (dim,):
        raise OptionError(
            f"FlowDensity needs a base over vectors of size {dim}; got event_shape "
            f"{tuple(base.event_shape)}. Declare event dimensions with Independent(base, 1)."
        )
    if isinstance(base, Base):
        return
    if base.support is constraints.simplex:
        raise OptionError(
            f"FlowDensity needs a base over {dim} free numbers; those of {type(base).__name__} sum "
            f"to 1. Take a flow of dim={dim - 1}, and StickBreakingTransform behind it."
        )
    if tuple(base.batch_shape) or not base.has_rsample:
        raise OptionError(
            "FlowDensity needs a base without batch shape, whose draws carry gradients (rsample); "
            f"got {type(base).__name__} with batch_shape {tuple(base.batch_shape)}"
            f"{'' if base.has_rsample else ' and no rsample'}."
        )
