"""A monotone net of one number, as a univariate transformer: neural autoregressive flows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._math import bounded, one_plus_a, solve_monotone
from pyro_nfvi._typing import Coordinates, EachImage, MapParams, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.flows._recipe import BOUNDS, SIZES
from pyro_nfvi.flows._transformers import AffineTransformer, Transformer


@dataclass(frozen=True)
class MonotoneTransformer(Transformer):
    r"""A one-layer monotone net with a linear skip, then shift and scale.

    .. math::
        y = x + \frac1K \sum_j \frac{a_j}{e^{s_j}} \tanh(e^{s_j} x + b_j), \qquad a_j > -1

    The slope is the mean of K positive terms :math:`1 + a_j\,\mathrm{sech}^2`, so that its
    logarithm never cancels. The skip makes the codomain all reals: tails are not cut.

    Args:
        units: Number of hidden units K.

    Cost:
        K tanh forward. The inverse is numeric: a bracketed Newton, to rounding
        (relative 1e-15 of the bracket in float64), with exact first and second derivatives.

    Source: Huang et al. 2018, arXiv:1804.00779, section 3. Differs: tanh units with a skip in
    place of a logit of mixed sigmoids, for the identity at the start and unbounded codomain.
    """

    units: int = 8
    inverse_kind = "numeric"

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", whole("MonotoneTransformer: units", self.units))

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Slopes, sharpnesses, offsets, shift and log-scale."""
        return 3 * self.units + 2

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        net, affine = params.split([3 * self.units, 2], -1)
        value, slope = _net(x, *self._units(net))
        y, ladj = AffineTransformer().forward(value, affine)
        return y, slope.log() + ladj

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        net, affine = params.split([3 * self.units, 2], -1)
        inner, ladj = AffineTransformer().inverse(y, affine)
        units = self._units(net)
        rise, sharp, _ = units
        reach = ((rise - 1).abs() / sharp).mean(-1)
        x = solve_monotone(lambda x: _net(x, *units), inner, inner - reach, inner + reach)
        _, slope = _net(x, *units)
        return x, ladj - slope.log()

    def _units(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``1 + a``, sharpness and offset of each unit."""
        raw_rise, raw_sharp, offset = params.split(self.units, -1)
        # Centres start apart: equal units would get equal gradients for ever.
        centres = torch.linspace(
            -SIZES.unit_spread,
            SIZES.unit_spread,
            self.units,
            dtype=params.dtype,
            device=params.device,
        )
        sharp = bounded(raw_sharp, BOUNDS.log_sharpness).exp()
        return one_plus_a(raw_rise), sharp, offset + centres


def _net(x: Tensor, rise: Tensor, sharp: Tensor, offset: Tensor) -> TensorPair:
    """Return the value and the slope."""
    h = torch.tanh(sharp * x.unsqueeze(-1) + offset)
    value = x + ((rise - 1) / sharp * h).mean(-1)
    # 1 + a sech^2 t = tanh^2 t + (1 + a) sech^2 t, terms that do not cancel.
    steep = h.square()
    return value, torch.addcmul(steep, rise, 1 - steep).mean(-1)
