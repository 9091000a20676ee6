"""Elementwise flows: a univariate transformer per coordinate."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._transformer_names import TransformerLike, make_transformer


@final
class Elementwise(ParamFlow):
    r"""Each coordinate moves by itself: :math:`y_i = k(x_i; \phi_i)`.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        transformer: The univariate map, or its name (``"spline"``); an affine one by default.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        That of the transformer, D times, both ways.

    Source: Durkan et al. 2019, arXiv:1906.04032 (with a spline); Papamakarios et al. 2021,
    arXiv:1912.02762, section 3.1 (the scheme).

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Elementwise, SplineTransformer
        >>> y, ladj = Elementwise(3, transformer=SplineTransformer(bins=4))(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        transformer: TransformerLike = None,
        hidden_dim: int = 32,
    ) -> None:
        self.transformer = make_transformer(transformer)
        super().__init__(dim, context_dim, hidden_dim=hidden_dim)
        self.inverse_kind = self.transformer.inverse_kind
        self.periodic = self.transformer.periodic

    def init_params(self) -> TensorDict:
        return {"transformer": torch.zeros(self.dim, self.transformer.num_params)}

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        y, ladj = self.transformer.forward(x, theta["transformer"])
        return y, ladj.expand_as(x).sum(-1)

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        x, ladj = self.transformer.inverse(y, theta["transformer"])
        return x, ladj.expand_as(y).sum(-1)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        dx, _, dladj_dx, _ = self.transformer.slopes(x, self._params(x, theta))
        return (score - dladj_dx) / dx

    def _params(self, x: Tensor, theta: TensorDict) -> Tensor:
        return theta["transformer"].expand(*x.shape, self.transformer.num_params)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", transformer={self.transformer}"
