"""A mixture of densities, one for each mode, as one density of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._typing import Contexts, Image, PerComponent, Points, Rows
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import OptionError, ShapeError


@final
class MixtureDensity(NoiseDensity):
    r"""The distribution of a draw from one of K densities, chosen at random.

    .. math:: \log q(z) = \log \sum_k w_k\, q_k(z), \qquad w = \mathrm{softmax}(\text{logits})

    It has the methods of :class:`FlowDensity`. Base noise has one coordinate more than z: the
    last one, through the normal distribution function, chooses the component, the others go
    through its flow. A draw is thus a function of its noise.

    Args:
        parts: K densities of vectors of one size, each from standard normal noise.
        logits: Unnormalised log weights ``(K,)``.

    Shape:
        Noise ``(*b, D + 1)``, points ``(*b, D)``, log densities ``(*b,)``, in nats.

    Cost:
        ``push`` costs a forward pass and an inverse of every component, ``log_prob`` an inverse
        of every component.

    Raises:
        OptionError: No component, sizes that differ, or a component with another base.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import Affine
        >>> from pyro_nfvi.distributions import MixtureDensity
        >>> parts = [FlowDensity(Affine(torch.full((1,), m), torch.ones(1))) for m in (-9.0, 9.0)]
        >>> density = MixtureDensity(parts, torch.tensor([0.2, 0.8]).log())
        >>> z, log_q = density.rsample_and_log_prob(1000)
        >>> 0.7 < float((z > 0).double().mean()) < 0.9
        True
    """

    def __init__(self, parts: Sequence[FlowDensity], logits: Tensor) -> None:
        super().__init__()
        if not parts or logits.shape != (len(parts),):
            raise OptionError(
                "MixtureDensity needs at least one component and logits of shape (K,); got "
                f"{len(parts)} components and logits of shape {tuple(logits.shape)}."
            )
        dims = [part.flow.dim for part in parts]
        if len(set(dims)) > 1 or any(part.base is not None for part in parts):
            raise OptionError(
                "MixtureDensity needs components of one size, each from standard normal noise; "
                f"got sizes {dims}."
            )
        self.parts = nn.ModuleList(parts)
        self.logits = logits
        self.dim = dims[0]

    @property
    def _members(self) -> list[FlowDensity]:
        return [part for part in self.parts if isinstance(part, FlowDensity)]

    @property
    def log_weights(self) -> Tensor:
        """Log weights ``(K,)``, in nats."""
        return torch.log_softmax(self.logits, 0)

    def sample_base(
        self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw base noise ``(*shape, D + 1)``."""
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        like = self.logits
        return torch.randn(
            *size, self.dim + 1, dtype=like.dtype, device=like.device, generator=generator
        )

    def choose(self, eps: Tensor) -> Tensor:
        """Return the component ``(*b,)`` that the noise ``(*b, D + 1)`` chooses."""
        if eps.dim() == 0 or eps.shape[-1] != self.dim + 1:
            raise ShapeError(
                f"MixtureDensity needs noise of shape (*b, {self.dim + 1}), one coordinate more "
                f"than the point; got {tuple(eps.shape)}."
            )
        edges = self.log_weights.detach().exp().cumsum(0)[:-1]
        return (torch.special.ndtr(eps[..., -1:]) > edges).sum(-1)

    @full_precision
    def push(self, eps: Tensor, context: Contexts | None = None) -> Image:
        """Map noise to ``(z, log_q)``; differentiable, the choice of the component apart."""
        chosen = self.choose(eps)
        pushed = [part.push(eps[..., :-1], context) for part in self._members]
        z = _taken([point for point, _ in pushed], chosen)
        # The chosen one's own density is known without its inverse.
        own = torch.stack([log_q for _, log_q in pushed], -1)
        mine = torch.arange(len(pushed), device=chosen.device) == chosen.unsqueeze(-1)
        each = torch.where(mine, own, self.components(z))
        return z, torch.logsumexp(each + self.log_weights, -1)

    @full_precision
    def draw(self, eps: Tensor) -> Tensor:
        """Map noise to points ``(*b, D)`` alone, which needs no inverse."""
        with scoring(self):
            pushed = [part.flow(eps[..., :-1])[0] for part in self._members]
        return _taken(pushed, self.choose(eps))

    @full_precision
    def components(self, z: Points) -> PerComponent:
        """Log density of each component, without its weight: ``(*b, D) -> (*b, K)``, in nats.

        -inf where a point is so far from a component that its flow cannot be inverted there.
        """
        each = torch.stack([part.log_prob(z) for part in self._members], -1)
        return torch.where(each.isnan(), torch.full_like(each, -torch.inf), each)

    @full_precision
    def log_prob(self, z: Points, context: Contexts | None = None) -> Rows:
        """Score any point: ``(*b, D) -> (*b,)``, differentiable in point and parameters."""
        return torch.logsumexp(self.components(z) + self.log_weights, -1)

    @full_precision
    def responsibilities(self, z: Points) -> PerComponent:
        """Probability that a point came from each component: ``(*b, D) -> (*b, K)``."""
        return torch.softmax(self.components(z) + self.log_weights, -1)


def _taken(points: list[Tensor], chosen: Tensor) -> Tensor:
    """Take each row ``(*b, D)`` from the component ``(*b,)`` that was chosen for it."""
    size = points[0].shape[-1]
    index = chosen[..., None, None].expand(*chosen.shape, 1, size)
    return torch.stack(points, -2).gather(-2, index).squeeze(-2)
