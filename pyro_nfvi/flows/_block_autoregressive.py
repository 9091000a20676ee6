"""Block neural autoregressive flow: one net of the whole vector, monotone on its diagonal."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._math import one_plus_a, sech2, soft_clamp, solve_monotone
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi._vjp import vjp
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._recipe import BOUNDS


@final
class BlockAutoregressive(Flow):
    r"""A net with block-triangular weights, positive on the diagonal blocks, beside a skip.

    .. math:: y_i = x_i + \frac{a_i}{H_i} h_i(x_{\le i}), \qquad a_i > -1

    where h increases in its own coordinate with slope at most :math:`H_i` (the product of the
    diagonal blocks; tanh has slope at most 1). The skip keeps the codomain all reals, so that
    tails are not cut, and ``a = 0`` is the identity.

    Args:
        dim: Event size D.
        context_dim: Size of the context, added in the first layer; 0 for none.
        hidden_factor: Hidden units per coordinate.
        num_hidden: Hidden layers.
        reverse: Take the coordinates from the last to the first.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` or broadcastable -> ``y (*b, D)``, ``ladj (*b,)``.

    Cost:
        One net pass forward, O((D h)^2) weights. The inverse is numeric: coordinate by
        coordinate a bracketed Newton, to rounding, up to 100 net passes each: score given
        points of large D with another flow. The score takes D + 1 vector-Jacobian products.

    Raises:
        OptionError: ``hidden_factor`` or ``num_hidden`` is below 1.
        ShapeError: A point or context of the wrong size.

    Source: De Cao et al. 2019, arXiv:1904.04676, equations 6-9. Differs: the skip, its bound and
    the identity at the start.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import BlockAutoregressive
        >>> y, ladj = BlockAutoregressive(3, hidden_factor=4)(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    inverse_kind = "numeric"

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        hidden_factor: int = 8,
        num_hidden: int = 1,
        reverse: bool = False,
    ) -> None:
        super().__init__(dim, context_dim)
        hidden_factor = whole("BlockAutoregressive: hidden_factor", hidden_factor)
        num_hidden = whole("BlockAutoregressive: num_hidden", num_hidden)
        self.reverse = reverse
        self.factors = (1, *[hidden_factor] * num_hidden, 1)
        self.rise = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ParameterList()
        self.below = nn.ParameterList()
        self.biases = nn.ParameterList()
        for size_in, size_out in zip(self.factors, self.factors[1:]):
            self.blocks.append(0.5 * torch.randn(dim, size_out, size_in) - math.log(size_in))
            self.below.append(torch.randn(dim * size_out, dim * size_in) / (dim * size_in) ** 0.5)
            self.biases.append(torch.empty(dim * size_out).uniform_(-1, 1))
        # Which blocks of a weight stand below the diagonal, and which on it.
        ones = torch.ones(dim, dim)
        self.register_buffer("before", ones.tril(-1)[:, None, :, None], persistent=False)
        self.register_buffer("own", torch.eye(dim)[:, None, :, None], persistent=False)
        self.before: Tensor
        self.own: Tensor
        self.context_weight = nn.Parameter(
            torch.randn(dim * self.factors[1], context_dim) / max(context_dim, 1) ** 0.5
        )

    def _weights(self, layer: int) -> TensorPair:
        """The whole weight of a layer, and its positive diagonal blocks ``(D, out, in)``."""
        diagonal = soft_clamp(self.blocks[layer], BOUNDS.log_weight).exp()
        below = self.below[layer]
        blocks = below.view(self.dim, diagonal.shape[1], self.dim, diagonal.shape[2])
        weight = torch.addcmul(blocks * self.before, self.own, diagonal.unsqueeze(2))
        return weight.view(below.shape), diagonal

    def _net(self, x: Tensor, context: Tensor | None) -> TensorPair:
        """Return y and its slopes ``dy_i/dx_i``, in the order of the masks."""
        h = x
        # The path from each coordinate to its own block, and its bound with all tanh' = 1.
        path = bound = x.new_ones(self.dim, 1, 1)
        last = len(self.blocks) - 1
        for layer in range(last + 1):
            weight, diagonal = self._weights(layer)
            h = F.linear(h, weight, self.biases[layer])
            path, bound = diagonal @ path, diagonal @ bound
            if layer == 0 and context is not None:
                h = h + F.linear(context, self.context_weight)
            if layer < last:
                path = path * sech2(h).unflatten(-1, (self.dim, -1, 1))
                h = torch.tanh(h)
        rise = one_plus_a(self.rise)
        bound = bound.flatten()
        share = path.flatten(-3) / bound
        y = x + (rise - 1) / bound * h
        return y, (1 - share) + rise * share

    def _reach(self, context: Tensor | None) -> Tensor:
        """Bound of ``|y_i - x_i|``."""
        bound = self.rise.new_ones(self.dim, 1, 1)
        for layer in range(len(self.blocks)):
            weight, diagonal = self._weights(layer)
            bound = diagonal @ bound
        height = weight.abs().sum(-1) + self.biases[-1].abs()
        return (one_plus_a(self.rise) - 1).abs() / bound.flatten() * height

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        y, slope = self._net(self._order(x), context)
        return self._order(y), slope.log().sum(-1)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        target = self._order(y)
        reach = self._reach(context)
        x = torch.zeros_like(target)
        for i in range(self.dim):
            y_i = target[..., i]
            before, after = x[..., :i], x[..., i + 1 :]

            def function(value: Tensor) -> TensorPair:
                point = torch.cat([before, value.unsqueeze(-1), after], -1)  # noqa: B023
                image, slope = self._net(point, context)
                return image[..., i], slope[..., i]  # noqa: B023

            solved = solve_monotone(function, y_i, y_i - reach[i], y_i + reach[i])
            x = torch.cat([before, solved.unsqueeze(-1), after], -1)
        _, slope = self._net(x, context)
        return self._order(x), -slope.log().sum(-1)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, context = self.enter(x, context)
        y, ladj = self(x, context)
        held = None if context is None else context.detach()
        with torch.no_grad():
            # D products with the Jacobian's rows, at x: no root is searched for.
            pull = vjp(lambda point: self(point, held), x.detach())
            zeros, still = torch.zeros_like(x), x.new_zeros(x.shape[:-1])
            target = score.detach().expand_as(x) - pull((zeros, torch.ones_like(still)))[0]
            unit = torch.eye(self.dim, dtype=x.dtype, device=x.device)
            rows = [pull((zeros + unit[i], still))[0] for i in range(self.dim)]
            # Lower triangular in the order of the masks; reversed order makes it upper.
            pushed = torch.linalg.solve_triangular(
                torch.stack(rows, -2).mT, target.unsqueeze(-1), upper=not self.reverse
            ).squeeze(-1)
        return y, ladj, pushed

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(-1) if self.reverse else x

    def extra_repr(self) -> str:
        return super().extra_repr() + f", factors={self.factors}, reverse={self.reverse}"
