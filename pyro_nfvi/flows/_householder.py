"""Orthogonal maps as products of Householder reflections."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.flows._conditioning import ParamFlow


@final
class Householder(ParamFlow):
    r"""A product of reflections, :math:`H_v = I - 2 v v^\top / v^\top v`: an orthogonal map.

    Reflections come in pairs whose two vectors start equal, so that the product starts as the
    identity. The log-determinant is 0.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        num_pairs: Pairs of reflections.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)``, which is 0.

    Cost:
        O(D) per row and reflection, both ways.

    Raises:
        OptionError: ``num_pairs`` is below 1.

    Source: Tomczak and Welling 2016, arXiv:1611.09630, equation 6. Differs: reflections in
    pairs, for the identity at the start.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Householder
        >>> y, ladj = Householder(3)(torch.ones(2, 3))
        >>> bool(torch.allclose(y, torch.ones(2, 3)))
        True
    """

    def __init__(
        self, dim: int, context_dim: int = 0, *, num_pairs: int = 2, hidden_dim: int = 32
    ) -> None:
        self.num_pairs = whole("Householder: num_pairs", num_pairs)
        super().__init__(dim, context_dim, hidden_dim=hidden_dim)

    def init_params(self) -> TensorDict:
        return {"v": torch.randn(self.num_pairs, 1, self.dim).repeat(1, 2, 1).flatten(0, 1)}

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        return _reflect(x, theta["v"]), x.new_zeros(x.shape[:-1])

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        return _reflect(y, theta["v"].flip(-2)), y.new_zeros(y.shape[:-1])

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        return _reflect(score, theta["v"])


def _reflect(x: Tensor, v: Tensor) -> Tensor:
    r"""Reflect at all vectors ``(*c, K, D)``, the first one first.

    The k-th takes off :math:`c_k v_k` with :math:`\tfrac12|v_k|^2 c_k = v_k^\top(x - \sum_{j<k}
    c_j v_j)`: one triangular system of size K for all (Schreiber and Van Loan 1989).
    """
    gram = v @ v.mT
    squares = gram.diagonal(dim1=-2, dim2=-1)
    # A vector of 0 reflects nothing.
    lower = gram.tril(-1) + torch.diag_embed((squares + (squares == 0)) / 2)
    if v.dim() == 2:
        along = F.linear(x, v).unsqueeze(-1)
        c = torch.linalg.solve_triangular(lower, along, upper=False).squeeze(-1)
        return x - c @ v
    c = torch.linalg.solve_triangular(lower, v @ x.unsqueeze(-1), upper=False)
    return x - (v.mT @ c).squeeze(-1)
