"""The posterior of a batch: encoded once, drawn from as often as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nfvi._autocast import lift
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.vae._bound_flow import BoundFlow


@dataclass(frozen=True)
class Draws:
    """Draws from a posterior, with all parts of their log density.

    Attributes:
        z: Draws ``(S, B, D)``.
        log_q0: Log density of the Gaussian base at the point the flow started from ``(S, B)``.
        log_det: Log-determinants of the flow's layers, summed ``(S, B)``.
        score: Gradient of ``log_q`` in z, without a graph ``(S, B, D)``; None unless asked for.
    """

    z: Tensor
    log_q0: Tensor
    log_det: Tensor
    score: Tensor | None = None

    @property
    def log_q(self) -> Tensor:
        """Log density of the draws, ``log_q0 - log_det``, in nats ``(S, B)``."""
        return self.log_q0 - self.log_det


def _check_type(flow: Flow | None, loc: Tensor) -> None:
    """Refuse a flow whose parameters are of another type than the base."""
    like = None if flow is None else next(flow.parameters(), None)
    if like is not None and like.dtype != loc.dtype:
        raise ShapeError(
            f"The posterior's flow has parameters of {like.dtype}, and the encoder's loc and scale "
            f"are of {loc.dtype} in full precision. Convert the flow: vae.flow.to({loc.dtype})."
        )


@final
class Posterior:
    r"""The posterior :math:`q(z \mid x)` of each image of a batch.

    .. math:: z_0 = \mu(x) + \sigma(x)\,\varepsilon, \quad z = f(z_0; h(x)), \qquad
        \log q(z \mid x) = \log N(z_0; \mu, \sigma^2) - \log|\det \partial f/\partial z_0|

    Made by ``vae.encode(x)``; in full precision, whatever the encoder computes in. The
    encoder has run, and so has whatever computes the parameters of the flow's layers; each further
    draw costs the flow alone.

    Args:
        loc: Mean of the base ``(B, D)``.
        scale: Standard deviation of the base ``(B, D)``.
        flow: The flow, or None.
        context: The flow's context ``(B, C)``, or None.

    Shape:
        Noise and draws are ``(S, B, D)`` or ``(B, D)``; log densities without the last axis, in
        nats.

    Raises:
        ShapeError: Parameters of the flow in half precision, or of another type than ``loc``.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, section 4; Kingma et al. 2016,
    arXiv:1606.04934, section 3.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import make_flow
        >>> from pyro_nfvi.vae._posterior import Posterior
        >>> flow = make_flow("planar*2", dim=3, context_dim=4)
        >>> posterior = Posterior(torch.zeros(5, 3), torch.ones(5, 3), flow, torch.ones(5, 4))
        >>> draws = posterior.draw(7)
        >>> draws.z.shape, draws.log_q.shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, flow: Flow | None = None, context: Tensor | None = None
    ) -> None:
        self.loc, self.scale = lift(loc), lift(scale)
        self.flow = flow
        _check_type(flow, self.loc)
        self.context = lift(context) if flow is not None and flow.context_dim else None
        with scoring(flow):
            self._bound = BoundFlow(flow, self.context)

    def __len__(self) -> int:
        return int(self.loc.shape[0])

    def rows(self, index: Tensor) -> Posterior:
        """Return the posteriors of some images, in that order; an image may come several times."""
        context = None if self.context is None else self.context[index]
        return Posterior(self.loc[index], self.scale[index], self.flow, context)

    @property
    def dim(self) -> int:
        """Latent size D."""
        return int(self.loc.shape[-1])

    def noise(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw base noise ``(S, B, D)``; from torch's global state without a generator."""
        return torch.randn(
            num_samples,
            *self.loc.shape,
            dtype=self.loc.dtype,
            device=self.loc.device,
            generator=generator,
        )

    def draw(self, num_samples: int = 1, *, generator: torch.Generator | None = None) -> Draws:
        """Draw ``num_samples`` points for each image, reparametrised."""
        return self.push(self.noise(num_samples, generator=generator))

    def push(self, eps: Tensor, *, score: bool = False) -> Draws:
        """Map noise to draws, differentiable in the encoder and the flow.

        Args:
            eps: Standard normal noise ``(S, B, D)`` or ``(B, D)``.
            score: Return the gradient of the log density in z as well.

        Raises:
            ShapeError: Noise of another size.
        """
        if eps.dim() not in (2, 3) or eps.shape[-2:] != self.loc.shape:
            raise ShapeError(
                f"The noise needs shape (S, {len(self)}, {self.dim}) or {tuple(self.loc.shape)}; "
                f"got {tuple(eps.shape)}."
            )
        start = self.loc + self.scale * eps
        log_q0 = self._base(eps)
        with scoring(self.flow):
            if not score:
                z, log_det = self._bound.forward(start)
                return Draws(z, log_q0, log_det)
            pushed = -(eps / self.scale).detach()
            z, log_det, pushed = self._bound.forward_with_score(start, pushed)
            return Draws(z, log_q0, log_det, pushed)

    def _base(self, eps: Tensor) -> Tensor:
        density = standard_normal_log_prob(eps) - self.scale.log()
        return density.sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Score any points ``(S, B, D)`` or ``(B, D)`` through the flow's inverse."""
        return self.base_of(z)[1]

    def base_of(self, z: Tensor) -> TensorPair:
        """Map points back to the noise they come from: ``(eps, log_q)``."""
        with scoring(self.flow):
            start, ladj = self._bound.inverse(lift(z))
        eps = (start - self.loc) / self.scale
        return eps, self._base(eps) + ladj

    def distribution(self) -> dist.TorchDistribution:
        """Return q as a Pyro distribution: batch shape ``(B,)``, event shape ``(D,)``."""
        base = dist.Normal(self.loc, self.scale).to_event(1)
        if self.flow is None:
            return base
        return dist.TransformedDistribution(base, [self.flow.as_transform(self.context)])
