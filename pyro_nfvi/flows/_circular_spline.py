"""The rational-quadratic spline of the circle, as a univariate transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_nfvi._typing import Coordinates, EachImage, MapParams
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._angles import split_turns
from pyro_nfvi.flows._recipe import SPLINE
from pyro_nfvi.flows._spline import find_bin, in_bin, invert_in_bin
from pyro_nfvi.flows._transformers import Transformer


@dataclass(frozen=True)
class CircularSplineTransformer(Transformer):
    r"""Monotone rational-quadratic spline of an angle, then a rotation.

    On :math:`[-\pi, \pi]` the spline S of :class:`SplineTransformer`, whose slopes at the two ends
    are one free number; beyond, it goes on from turn to turn:

    .. math:: y = S(x - 2\pi k) + 2\pi k + \mu, \qquad k = \lfloor (x + \pi) / 2\pi \rfloor

    So the map has a continuous slope everywhere, :math:`y(x + 2\pi) = y(x) + 2\pi`, and it is a
    bijection of the circle, and of the real line as well.

    Args:
        bins: Number of bins K, at least 2.

    Shape:
        Angles in radians, any real number; ``3 K + 1`` parameters: K widths, K heights, K slopes
        and the rotation.

    Cost:
        That of :class:`SplineTransformer`; the inverse is in closed form.

    Raises:
        OptionError: ``bins`` is below 2 or above 999.

    Source: Rezende et al. 2020, arXiv:2002.02428, section 2.1, circular splines and translations
    of phase.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import CircularSplineTransformer, Elementwise
        >>> y, ladj = Elementwise(2, transformer=CircularSplineTransformer(4))(torch.ones(5, 2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    bins: int = 8
    periodic = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", whole("CircularSplineTransformer: bins", self.bins, 2))
        if self.bins >= 1 / SPLINE.least_bin:
            raise OptionError(f"A spline needs between 2 and 999 bins; got {self.bins}.")

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Widths, heights, slopes and the rotation."""
        return 3 * self.bins + 1

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        raw, rotation = params[..., :-1], params[..., -1]
        angle, turns = split_turns(x)
        y, ladj = in_bin(angle, *find_bin(angle, raw, self.bins, math.pi, vertical=False))
        return y + turns + rotation, ladj

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        raw, rotation = params[..., :-1], params[..., -1]
        angle, turns = split_turns(y - rotation)
        x, ladj = invert_in_bin(angle, *find_bin(angle, raw, self.bins, math.pi, vertical=True))
        return x + turns, ladj
