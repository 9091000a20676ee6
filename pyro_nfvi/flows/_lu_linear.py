"""Invertible linear maps by their LU factors, as in Glow."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import RAW_ONE, bounded, bounded_rows
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._validation import number
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._recipe import BOUNDS


@final
class LULinear(ParamFlow):
    r"""A linear map by its LU factors: :math:`y = L S U x + b`, the identity at the start.

    L and U are unit lower and unit upper triangular, S a positive diagonal. Glow's fixed random
    permutation is left out, so that the map starts as the identity; put a ``Permute`` in front
    where it is wanted. A context drives S between 0.08 and 3.6, and what is beside the diagonals to
    rows shorter than 1.5: a net may give any number, and the inverse has to stay.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        hidden_dim: Width of the hyper-net (with a context only).
        spread: Standard deviation of the numbers it starts from (rows shortened to 1.4); 0 starts
            as the identity.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D^2) per row: two products forward, two triangular solves inverse; no determinant.

    Source: Kingma and Dhariwal 2018, arXiv:1807.03039, section 3.2, equation 11. Differs: the
    rows of U are in units of its diagonal, without which a small diagonal ruins the inverse.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import LULinear
        >>> y, ladj = LULinear(3)(torch.ones(2, 3))
        >>> bool((y == 1).all())
        True
    """

    def __init__(
        self, dim: int, context_dim: int = 0, *, hidden_dim: int = 32, spread: float = 0.0
    ) -> None:
        self.spread = number("LULinear: spread", spread, least=0)
        super().__init__(dim, context_dim, hidden_dim=hidden_dim)

    def init_params(self) -> TensorDict:
        square = torch.zeros(self.dim, self.dim)
        vector = torch.zeros(self.dim)
        start = {"lower": square, "upper": square, "diagonal": vector, "bias": vector}
        if self.spread:
            lower, upper = (self.spread * torch.randn(square.shape) for _ in range(2))
            start["lower"], start["upper"] = _shortened(lower.tril(-1)), _shortened(upper.triu(1))
            start["bias"] = self.spread * torch.randn(vector.shape)
            if self.context_dim:  # what the limit makes them again
                for name in ("lower", "upper"):
                    length = start[name].square().sum(-1, keepdim=True)
                    start[name] = start[name] * (1 - length / BOUNDS.lu_row**2).rsqrt()
        return start

    def limit(self, theta: TensorDict) -> TensorDict:
        return {
            "diagonal": bounded(theta["diagonal"], BOUNDS.lu_scale),
            "lower": bounded_rows(theta["lower"].tril(-1), BOUNDS.lu_row),
            "upper": bounded_rows(theta["upper"].triu(1), BOUNDS.lu_row),
            "bias": theta["bias"],
        }

    def _factors(self, theta: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        raw = theta["diagonal"]
        diagonal = F.softplus(raw + RAW_ONE) / F.softplus(raw.new_full((), RAW_ONE))
        eye = torch.eye(self.dim, dtype=raw.dtype, device=raw.device)
        lower = theta["lower"].tril(-1) + eye
        return lower, diagonal.unsqueeze(-1) * (theta["upper"].triu(1) + eye), diagonal

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        lower, upper, diagonal = self._factors(theta)
        y = (lower @ (upper @ x.unsqueeze(-1))).squeeze(-1) + theta["bias"]
        return y, diagonal.log().sum(-1).expand(x.shape[:-1])

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        lower, upper, diagonal = self._factors(theta)
        rest = (y - theta["bias"]).unsqueeze(-1)
        rest = torch.linalg.solve_triangular(lower, rest, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, rest, upper=True).squeeze(-1)
        return x, -diagonal.log().sum(-1).expand(y.shape[:-1])

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        lower, upper, _ = self._factors(theta)
        rest = torch.linalg.solve_triangular(upper.mT, score.unsqueeze(-1), upper=False)
        return torch.linalg.solve_triangular(
            lower.mT, rest, upper=True, unitriangular=True
        ).squeeze(-1)


def _shortened(x: Tensor) -> Tensor:
    """Rows of a length within what a context can drive."""
    length = x.norm(dim=-1, keepdim=True)
    return x * ((BOUNDS.lu_row - 0.1) / length.clamp_min(BOUNDS.lu_row - 0.1))
