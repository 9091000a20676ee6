"""The posterior's map of a hierarchical VAE: two layers of latents, the lower given the upper."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nfvi._math import soft_clamp
from pyro_nfvi._nn.mlp import MLP
from pyro_nfvi._typing import Contexts, Image, Points, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.vae._recipe import NETWORKS


class Split(NamedTuple):
    """Two layers with their log-determinants ``(*b,)``, in nats."""

    lower: Tensor
    upper: Tensor
    lower_ladj: Tensor
    upper_ladj: Tensor


class HierarchicalFlow(Flow):
    r"""A bijection of two layers of latents, whose Jacobian is block triangular.

    .. math:: z_2 = f_2(x_2; h), \qquad z_1 = f_1\bigl(m(z_2, h) + s(z_2, h) \odot x_1; k(z_2, h)
        \bigr)

    A net with one hidden layer and a linear skip gives location m, log scale (bounded smoothly at
    5) and the context k of the lower layer from the upper one and the context h; it starts at
    m = 0, s = 1, k = 0.

    Args:
        sizes: Sizes ``(D1, D2)`` of lower and upper layer; points are ``(lower, upper)``.
        context_dim: Size of h; 0 for none.
        lower: :math:`f_1`, of dim D1, with any context or none; None for the identity.
        upper: :math:`f_2`, of dim D2, with ``context_dim`` or none; None for the identity.
        hidden: Width of the net.

    Source: Sønderby et al. 2016, arXiv:1602.02282 (the lower layer given the upper one); Kingma et
    al. 2016, arXiv:1606.04934, appendix C (a flow for each layer).
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        context_dim: int = 0,
        lower: Flow | None = None,
        upper: Flow | None = None,
        *,
        hidden: int,
    ) -> None:
        first, second = (whole("HierarchicalFlow: sizes", size) for size in sizes)
        super().__init__(first + second, context_dim)
        for flow, size, contexts in (
            (lower, first, None),
            (upper, second, (0, context_dim)),
        ):
            fits = flow is None or flow.dim == size
            if not fits or (flow and contexts and flow.context_dim not in contexts):
                raise OptionError(
                    f"HierarchicalFlow of sizes {sizes} and context_dim={context_dim} does not "
                    f"take {flow!r}."
                )
        self.sizes = (first, second)
        self.lower, self.upper = lower, upper
        self._code = 0 if lower is None else lower.context_dim
        width = whole("HierarchicalFlow: hidden", hidden)
        self.net = MLP(second + context_dim, 2 * first + self._code, hidden=(width,))
        kinds = {flow.inverse_kind for flow in (lower, upper) if flow is not None}
        self.inverse_kind = next(
            (kind for kind in ("numeric", "sequential") if kind in kinds), "exact"
        )

    def _given(self, upper: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return location, log scale and context of the lower layer."""
        seen = [upper] if context is None else [upper, context.expand(*upper.shape[:-1], -1)]
        first = self.sizes[0]
        loc, raw, code = self.net(torch.cat(seen, -1)).split((first, first, self._code), -1)
        return loc, soft_clamp(raw, NETWORKS.log_scale), code if self._code else None

    def parts(self, x: Tensor, context: Tensor | None = None) -> Split:
        """Map ``(*b, D1 + D2)`` forwards, layer by layer."""
        x, context = self.enter(x, context)
        lower, upper = x.split(self.sizes, -1)
        upper, upper_ladj = _run(self.upper, upper, context, backwards=False)
        loc, log_scale, code = self._given(upper, context)
        lower, lower_ladj = _run(self.lower, loc + log_scale.exp() * lower, code, backwards=False)
        return Split(lower, upper, lower_ladj + log_scale.sum(-1), upper_ladj)

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        found = self.parts(x, context)
        return torch.cat([found.lower, found.upper], -1), found.lower_ladj + found.upper_ladj

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        lower, upper = y.split(self.sizes, -1)
        loc, log_scale, code = self._given(upper, context)
        lower, ladj = _run(self.lower, lower, code, backwards=True)
        start, upper_ladj = _run(self.upper, upper, context, backwards=True)
        found = torch.cat([(lower - loc) * (-log_scale).exp(), start], -1)
        return found, ladj - log_scale.sum(-1) + upper_ladj


def _run(flow: Flow | None, x: Tensor, context: Tensor | None, *, backwards: bool) -> TensorPair:
    if flow is None:
        return x, x.new_zeros(x.shape[:-1])
    given = context if flow.context_dim else None
    return flow.inverse(x, given) if backwards else flow(x, given)
