"""The density of a guide of Pyro's, with the methods of ``FlowDensity``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._typing import Contexts, Image, Points, Rows
from pyro_nfvi._validation import sizes
from pyro_nfvi.distributions._density import NoiseDensity

if TYPE_CHECKING:
    from pyro_nfvi.guides._guide_parts import GuidePart


@final
class PartsDensity(NoiseDensity):
    """Independent parts of one vector, each from noise of its own.

    Args:
        parts: The parts; each coordinate is in one.
        like: A vector ``(D,)`` of the dtype and device of the guide.

    Shape:
        Noise ``(*b, E)``, points ``(*b, D)``, log densities ``(*b,)``, in nats.
    """

    def __init__(self, parts: Sequence[GuidePart], like: Tensor) -> None:
        super().__init__()
        self._parts, self._like = tuple(parts), like
        self.dim = len(like)
        self.noise_dim = sum(part.noise for part in parts)
        self._order = torch.cat([part.places for part in parts]).argsort().to(like.device)

    def sample_base(
        self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw base noise ``(*shape, E)``."""
        like = self._like
        return torch.randn(
            *sizes(shape), self.noise_dim, dtype=like.dtype, device=like.device,
            generator=generator,
        )  # fmt: skip

    @full_precision
    def push(self, eps: Tensor, context: Contexts | None = None) -> Image:
        """Map noise to ``(z, log_q)``, differentiable in the guide's parameters."""
        rows = eps.reshape(-1, self.noise_dim)
        shares = rows.split([part.noise for part in self._parts], -1)
        pushed = [part.push(share) for part, share in zip(self._parts, shares)]
        z = torch.cat([u for u, _ in pushed], -1)[:, self._order]
        log_q = torch.stack([log_q for _, log_q in pushed]).sum(0)
        batch = eps.shape[:-1]
        return z.reshape(*batch, self.dim), log_q.reshape(batch)

    def draw(self, eps: Tensor) -> Tensor:
        """Map noise to points ``(*b, D)`` alone."""
        return self.push(eps)[0]

    @full_precision
    def log_prob(self, z: Points, context: Contexts | None = None) -> Rows:
        """Score any point: ``(*b, D) -> (*b,)``, differentiable in point and parameters."""
        rows = z.reshape(-1, self.dim)
        each = [part.log_prob(rows[:, part.places]) for part in self._parts]
        return torch.stack(each).sum(0).reshape(z.shape[:-1])
