"""Moebius maps of the circle, as a univariate transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_nfvi._math import bounded_rows, solve_monotone
from pyro_nfvi._typing import Coordinates, EachImage, MapParams, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.flows._recipe import BOUNDS
from pyro_nfvi.flows._transformers import Transformer


@dataclass(frozen=True)
class MoebiusTransformer(Transformer):
    r"""Weighted mean of Moebius maps of an angle, then a rotation.

    With centres :math:`\omega_k = (a_k, b_k)` inside the unit disc and weights :math:`\rho_k` that
    sum to 1,

    .. math::
        y = x + \mu + \sum_k \rho_k\, 2 \arctan
            \frac{a_k \sin x - b_k \cos x}{1 - a_k \cos x - b_k \sin x}, \qquad
        \frac{dy}{dx} = \sum_k \rho_k \frac{1 - |\omega_k|^2}{|e^{ix} - \omega_k|^2}

    The slope is that of the map :math:`z \mapsto (z - \omega) / (1 - \bar\omega z)` of the unit
    circle, whose angle this is without a cut: :math:`y(x + 2\pi) = y(x) + 2\pi`, infinitely
    smooth. Moebius maps of Moebius maps are Moebius maps; their means are not.

    Args:
        centres: Number of maps K.

    Shape:
        Angles in radians, any real number; ``3 K + 1`` parameters: K centres of two numbers, the
        logits of K weights and the rotation.

    Cost:
        K arc tangents. The inverse is in closed form for K = 1 (the map of the centre
        :math:`-\omega`); above, it is numeric: a bracketed Newton, to rounding, with exact first
        and second derivatives.

    Raises:
        OptionError: ``centres`` is below 1.

    Source: Rezende et al. 2020, arXiv:2002.02428, section 2.1, Moebius transformation. Differs:
    the angle is written without a cut, so that means need no rotation of each map to a common
    zero.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Elementwise, MoebiusTransformer
        >>> y, ladj = Elementwise(2, transformer=MoebiusTransformer(3))(torch.ones(5, 2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    centres: int = 8
    periodic = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "centres", whole("MoebiusTransformer: centres", self.centres))

    @property
    def inverse_kind(self) -> Literal["exact", "numeric"]:  # type: ignore[override]
        """In closed form for one centre."""
        return "exact" if self.centres == 1 else "numeric"

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Centres, logits of weights and the rotation."""
        return 3 * self.centres + 1

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        y, slope = _mean(x, *self._maps(params))
        return y + params[..., -1], slope.log()

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        inner = y - params[..., -1]
        centre, weight = self._maps(params)
        if self.centres == 1:
            x, slope = _mean(inner, -centre, weight)
            return x, slope.log()
        reach = torch.full_like(inner, math.pi)
        x = solve_monotone(lambda x: _mean(x, centre, weight), inner, inner - reach, inner + reach)
        return x, -_mean(x, centre, weight)[1].log()

    def _maps(self, params: Tensor) -> TensorPair:
        """Return the centres ``(*b, K, 2)`` and their weights ``(*b, K)``."""
        k = self.centres
        raw = params[..., : 2 * k].unflatten(-1, (k, 2))
        # Maps of equal numbers would get equal gradients for ever: each has a pace of its own.
        pace = torch.arange(1, k + 1, dtype=raw.dtype, device=raw.device).unsqueeze(-1) / k
        return bounded_rows(pace * raw, BOUNDS.moebius), params[..., 2 * k : 3 * k].softmax(-1)


def _mean(x: Tensor, centre: Tensor, weight: Tensor) -> TensorPair:
    """Return the value, but for the rotation, and the slope."""
    a, b = centre.unbind(-1)
    cos, sin = x.cos().unsqueeze(-1), x.sin().unsqueeze(-1)
    bend = 2 * torch.atan2(a * sin - b * cos, 1 - a * cos - b * sin)
    # Of squares, so that nothing cancels where a centre is close to the circle.
    slope = (1 - a.square() - b.square()) / ((cos - a).square() + (sin - b).square())
    return x + (weight * bend).sum(-1), (weight * slope).sum(-1)
