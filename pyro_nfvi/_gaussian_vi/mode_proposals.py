"""Places and widths from which posterior mass is looked for, as one mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import PROPOSALS


@dataclass(frozen=True)
class Proposals:
    r"""R multivariate Student t distributions of :math:`\nu` degrees of freedom, as one mixture.

    Each gives equally many draws, and a draw is weighted by the density of the whole mixture (the
    balance heuristic): a proposal that is narrow, or far off, can then make no weight large where
    another one covers the place.

    Attributes:
        normals: Locations and factors.
        freedom: Degrees of freedom ``(R,)``; ``inf`` for Gaussians.

    Source: Veach and Guibas 1995, doi 10.1145/218380.218498; Owen and Zhou 2000.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
        >>> from pyro_nfvi._random import stream
        >>> both = Proposals.of(Normals.around(torch.zeros(1, 2), 1.0), 3.0)
        >>> points = both.draw(500, stream(0, "example"))
        >>> points.shape, both.log_prob(torch.zeros(1, 2)).round(decimals=3).tolist()
        (torch.Size([500, 2]), [-1.838])
    """

    normals: Normals
    freedom: Tensor

    @classmethod
    def of(cls, normals: Normals, freedom: float = math.inf) -> Proposals:
        """Make proposals of one kind."""
        return cls(normals, normals.loc.new_full((len(normals),), freedom))

    def __len__(self) -> int:
        return len(self.normals)

    def __add__(self, other: Proposals) -> Proposals:
        mine, theirs = self.normals, other.normals
        joined = Normals(torch.cat([mine.loc, theirs.loc]), torch.cat([mine.factor, theirs.factor]))
        return Proposals(joined, torch.cat([self.freedom, other.freedom]))

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw ``num`` points of each: ``(R * num, D)``."""
        eps = self.normals.noise(num, generator)
        chi = torch.ones_like(eps[..., :1])
        for place, freedom in enumerate(self.freedom.tolist()):
            if math.isfinite(freedom):
                shape = (num, round(freedom))
                noise = torch.randn(shape, generator=generator, dtype=eps.dtype, device=eps.device)
                chi[place] = noise.square().mean(-1, keepdim=True)
        return self.normals.points(eps / chi.sqrt()).flatten(0, 1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of the mixture at points ``(N, D)``: ``(N,)``, in nats."""
        size = max(1, PROPOSALS.table_numbers // max(1, len(self) * self.normals.dim))
        return torch.cat([self._log_prob(part) for part in z.split(size)])

    def _log_prob(self, z: Tensor) -> Tensor:
        dim = self.normals.dim
        normal = self.normals.log_prob(z)
        log_det = self.normals.scales.log().sum(-1)
        square = -2 * (normal + log_det) - dim * math.log(2 * math.pi)
        free = self.freedom
        finite = torch.isfinite(free)
        some = torch.where(finite, free, torch.ones_like(free))
        constant = torch.lgamma((some + dim) / 2) - torch.lgamma(some / 2)
        constant = constant - 0.5 * dim * (some * math.pi).log() - log_det
        heavy = constant - 0.5 * (some + dim) * torch.log1p(square.clamp_min(0) / some)
        return torch.logsumexp(torch.where(finite, heavy, normal), -1) - math.log(len(self))
