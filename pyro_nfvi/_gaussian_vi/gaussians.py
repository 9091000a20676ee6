"""Several Gaussians side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._typing import TensorPair


@dataclass(frozen=True)
class Normals:
    r"""R Gaussians :math:`N(m_r, L_r L_r^\top)`, in float64.

    Attributes:
        loc: Means ``(R, D)``.
        factor: Lower triangular with a positive diagonal ``(R, D, D)``, or the diagonals alone
            ``(R, D)`` for Gaussians without correlations.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> two = Normals.around(torch.zeros(2, 3), 0.1)
        >>> len(two), two.points(torch.ones(2, 5, 3, dtype=torch.float64))[0, 0]
        (2, tensor([0.1000, 0.1000, 0.1000], dtype=torch.float64))
    """

    loc: Tensor
    factor: Tensor

    @classmethod
    def around(cls, loc: Tensor, scale: float | Tensor, *, diagonal: bool = False) -> Normals:
        """Round Gaussians at ``loc (R, D)``; ``scale`` is one number, or one for each.

        Those of ``diagonal=True`` have no correlations and will learn none.
        """
        loc = loc.double()
        sizes = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device).expand(len(loc))
        factor = sizes[:, None].expand_as(loc)
        return cls(loc, factor.clone() if diagonal else torch.diag_embed(factor))

    def __len__(self) -> int:
        return len(self.loc)

    @property
    def dim(self) -> int:
        """Dimension D."""
        return self.loc.shape[-1]

    def take(self, index: int | Sequence[int] | Tensor) -> Normals:
        """Return some of them, always as a batch."""
        chosen = torch.as_tensor([index] if isinstance(index, int) else index)
        return Normals(self.loc[chosen], self.factor[chosen])

    @property
    def is_full(self) -> bool:
        """True for Gaussians with correlations."""
        return self.factor.dim() == 3

    @property
    def scales(self) -> Tensor:
        """Diagonals of the factors ``(R, D)``."""
        return self.factor.diagonal(dim1=-2, dim2=-1) if self.is_full else self.factor

    def stretch(self, eps: Tensor) -> Tensor:
        r"""Apply the factors to rows: :math:`L_r\varepsilon`, ``(R, B, D)`` to the same."""
        return eps @ self.factor.mT if self.is_full else eps * self.factor.unsqueeze(1)

    def pull(self, score: Tensor) -> Tensor:
        r"""Apply the transposed factors to rows: :math:`L_r^\top g`."""
        return score @ self.factor if self.is_full else score * self.factor.unsqueeze(1)

    def points(self, eps: Tensor) -> Tensor:
        """Map noise ``(R, B, D)`` to draws ``(R, B, D)``."""
        return self.loc.unsqueeze(1) + self.stretch(eps)

    def noise(self, num: int, generator: torch.Generator | None) -> Tensor:
        """Draw standard normal noise ``(R, num, D)``."""
        shape = (len(self), num, self.dim)
        return torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)

    def where(self, chosen: Tensor, other: Normals) -> Normals:
        """Take these where ``chosen (R,)`` is true, and the others elsewhere."""
        shape = (-1,) + (1,) * (self.factor.dim() - 1)
        return Normals(
            torch.where(chosen[:, None], self.loc, other.loc),
            torch.where(chosen.view(shape), self.factor, other.factor),
        )

    def shrunk(self) -> Normals:
        """Return the same at half the width."""
        return Normals(self.loc, 0.5 * self.factor)

    def log_weights(self, target: Target, eps: Tensor) -> Tensor:
        """Log p - log q at the draws of ``eps (R, B, D)``: ``(R, B)`` in nats, -inf where bad."""
        return target(self.points(eps))[0] - self.log_q(eps)

    def log_q(self, eps: Tensor) -> Tensor:
        """Log densities of the draws of ``eps (R, B, D)``: ``(R, B)``, in nats."""
        log_det = self.scales.log().sum(-1, keepdim=True)
        return standard_normal_log_prob(eps).sum(-1) - log_det

    @property
    def covariances(self) -> Tensor:
        """Covariances ``(R, D, D)``."""
        if self.is_full:
            return self.factor @ self.factor.mT
        return torch.diag_embed(self.factor.square())

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of every Gaussian at any points: ``(N, D) -> (N, R)``, in nats."""
        away = z.to(self.loc) - self.loc.unsqueeze(1)
        if self.is_full:
            eps = torch.linalg.solve_triangular(self.factor, away.mT, upper=False).mT
        else:
            eps = away / self.factor.unsqueeze(1)
        return self.log_q(eps).mT

    def bounds(self, target: Target, num: int, generator: torch.Generator | None) -> TensorPair:
        """Evidence lower bounds and their standard errors, ``(R,)`` each, in nats.

        A bound is -inf if more than one draw in a hundred cannot be scored; fewer are left out.
        """
        log_w = self.log_weights(target, self.noise(num, generator))
        ok = torch.isfinite(log_w)
        count = ok.sum(-1)
        mean = torch.where(ok, log_w, torch.zeros_like(log_w)).sum(-1) / count.clamp_min(1)
        gap = torch.where(ok, log_w - mean.unsqueeze(-1), torch.zeros_like(log_w))
        error = (gap.square().sum(-1) / count.clamp_min(1)).sqrt() / count.clamp_min(1).sqrt()
        fine = (num - count) * 100 <= num
        return torch.where(fine, mean, torch.full_like(mean, -torch.inf)), error
