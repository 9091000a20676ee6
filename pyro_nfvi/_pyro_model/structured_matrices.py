"""Bijections from vectors of reals onto structured matrices: Cholesky factors and the like."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import CorrCholeskyTransform, Transform
from torch.nn import functional as F


class CorrTransform(CorrCholeskyTransform):
    r"""A vector of n(n-1)/2 reals to the Cholesky factor of a correlation matrix, or to the matrix.

    The map is torch's. Its log-determinant comes from the reals, where no saturation can make it
    infinite: with :math:`s_{ij} = \log \mathrm{sech}^2 x_{ij}` (j < i, counted from 0),

    .. math:: \log|\det| = \sum_{ij} \bigl(1 + \tfrac12 (i - 1 - j)\bigr) s_{ij}

    and for the matrix each :math:`s_{ij}` counts :math:`\tfrac12 (n - 1 - i)` times more.

    Args:
        square: Return :math:`L L^\top` instead of L.
    """

    def __init__(self, *, square: bool = False) -> None:
        super().__init__()
        self.square = square

    @property
    def codomain(self) -> Constraint:
        return constraints.corr_matrix if self.square else constraints.corr_cholesky

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CorrTransform) and self.square == other.square

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        lower = super()._call(x)
        return lower @ lower.mT if self.square else lower

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y) if self.square else y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: object = None) -> Tensor:
        n = y.shape[-1]
        rows, columns = torch.tril_indices(n, n, -1, device=x.device)
        weight = 1 + 0.5 * (rows - 1 - columns) + (0.5 * (n - 1 - rows) if self.square else 0)
        size = x.abs()
        log_sech2 = 2 * (math.log(2.0) - size - torch.log1p(torch.exp(-2 * size)))
        return (weight.to(x.dtype) * log_sech2).sum(-1)


class TrilTransform(Transform):
    r"""A vector of n(n+1)/2 (or n(n-1)/2) reals, row by row, to a lower triangular matrix.

    torch has no bijection for ``lower_cholesky`` and its relatives (its transform takes a full
    matrix, of which half is ignored). The density is one over the free entries of the matrix,
    as in Wishart and LKJ densities.

    Args:
        diagonal: ``"exp"`` or ``"softplus"`` for a positive diagonal, ``"unit"`` for ones.
        square: Return :math:`L L^\top` instead of L.
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, diagonal: str = "exp", *, square: bool = False) -> None:
        super().__init__()
        self.diagonal, self.square = diagonal, square

    @property
    def codomain(self) -> Constraint:
        if self.square:
            return constraints.positive_definite
        prefix = "" if self.diagonal == "exp" else f"{self.diagonal}_"
        return getattr(constraints, f"{prefix}lower_cholesky")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrilTransform) and (self.diagonal, self.square) == (
            other.diagonal,
            other.square,
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def _offset(self) -> int:
        return -1 if self.diagonal == "unit" else 0

    def _size(self, length: int) -> int:
        return (math.isqrt(8 * length + 1) + 1) // 2 + (-1 if self._offset == 0 else 0)

    def _call(self, x: Tensor) -> Tensor:
        n = self._size(x.shape[-1])
        rows, columns = torch.tril_indices(n, n, self._offset, device=x.device)
        where = torch.zeros(n, n, dtype=torch.long, device=x.device)
        where[rows, columns] = torch.arange(len(rows), device=x.device)
        free = torch.zeros(n, n, dtype=torch.bool, device=x.device)
        free[rows, columns] = True
        eye = torch.eye(n, dtype=torch.bool, device=x.device)
        padded = F.pad(x, (0, 1))  # so that a 1 x 1 matrix with ones has something to index
        raw = padded[..., where.reshape(-1)].reshape(*x.shape[:-1], n, n)
        lower = torch.where(free, raw, torch.zeros_like(raw))
        # The dead branch sees 0, so that its gradient stays finite.
        on_diagonal = torch.where(eye, lower, torch.zeros_like(lower))
        if self.diagonal == "unit":
            lower = torch.where(eye, torch.ones_like(lower), lower)
        elif self.diagonal == "softplus":
            lower = torch.where(eye, F.softplus(on_diagonal), lower)
        else:
            lower = torch.where(eye, on_diagonal.exp(), lower)
        return lower @ lower.mT if self.square else lower

    def _inverse(self, y: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(y) if self.square else y
        n = y.shape[-1]
        eye = torch.eye(n, dtype=torch.bool, device=y.device)
        safe = torch.where(eye, lower, torch.ones_like(lower))
        if self.diagonal == "softplus":
            lower = torch.where(eye, safe + torch.log(-torch.expm1(-safe)), lower)
        elif self.diagonal == "exp":
            lower = torch.where(eye, safe.log(), lower)
        rows, columns = torch.tril_indices(n, n, self._offset, device=y.device)
        return lower[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        n = y.shape[-1]
        if self.diagonal == "unit":
            return x.new_zeros(x.shape[:-1])
        index = torch.arange(1, n + 1, device=x.device)
        raw = x[..., index * (index + 1) // 2 - 1]
        ladj = (raw if self.diagonal == "exp" else F.logsigmoid(raw)).sum(-1)
        if self.square:
            order = torch.arange(n, 0, -1, dtype=x.dtype, device=x.device)
            ladj = ladj + n * math.log(2.0) + (order * raw).sum(-1)
        return ladj

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = self._size(shape[-1])
        return (*shape[:-1], n, n)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = shape[-1]
        return (*shape[:-2], n * (n + 1) // 2 + n * self._offset)
