"""A univariate transformer for tails: heavier or lighter than those that come in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._math import soft_clamp
from pyro_nfvi._typing import Coordinates, EachImage, MapParams, TensorPair
from pyro_nfvi.flows._recipe import TAIL
from pyro_nfvi.flows._transformers import Transformer


@dataclass(frozen=True)
class TailTransformer(Transformer):
    r"""Tails of their own weight on either side, the middle left alone.

    With :math:`h` of the side on which x lies,

    .. math::
        y = x\, e^{h x^2 / 2} \quad (h \ge 0), \qquad
        y = \mathrm{asinh}(c x) / c, \; c^2 = -3h \quad (h < 0)

    Both branches leave :math:`x + h x^3/2 + O(x^5)`, so that zero is the identity and h may pass
    through it. Of normal noise, :math:`h > 0` makes a power tail of index :math:`1/h` (Tukey's h),
    and :math:`h < 0` one that is lighter than any normal one. Beyond 6 the map goes on as a
    straight line, so that nothing overflows: tails are those of a power law up to
    :math:`6 e^{18 h}` widths, and normal beyond.

    At the output of a flow it serves posteriors with heavy or one-sided tails, which no Lipschitz
    map of normal noise has.

    Cost:
        Two exponentials forward. The inverse is in closed form but for Lambert's function of the
        heavy branch, and then two Newton steps, which carry exact first and second derivatives:
        the time of five evaluations forward.

    Source: Tukey's g-and-h family with one h on each side (Headrick, Kowalchuk and Sheng 2008,
    equations 3 and 5); Hickling and Prangle 2025, arXiv:2406.16971, for a tail layer at the
    output; the lighter branch is our own. Lambert's function: the iteration of Iacono and Boyd
    2017, Advances in Computational Mathematics 43, which converges quadratically.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Elementwise
        >>> from pyro_nfvi.flows._tail_transform import TailTransformer
        >>> y, ladj = Elementwise(3, transformer=TailTransformer())(torch.ones(2, 3))
        >>> bool((y == 1).all()), bool((ladj == 0).all())
        (True, True)
    """

    inverse_kind = "numeric"
    num_params: int = 2

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        return _map(x, _weight(x, params))

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        h = _weight(y, params)  # x has the sign of y
        with torch.no_grad():
            x = _root(y.detach(), h.detach())
        for _ in range(2):
            value, ladj = _map(x, h)
            x = x - (value - y) * (-ladj).exp()
        return x, -_map(x, h)[1]


def _weight(x: Tensor, params: Tensor) -> Tensor:
    """The weight h of the tail on whose side x lies."""
    raw = torch.where(x < 0, params[..., 0], params[..., 1])
    return soft_clamp(TAIL.pace * raw, TAIL.heaviest)


def _map(x: Tensor, h: Tensor) -> TensorPair:
    """Return the value and the logarithm of the slope."""
    inner = x.clamp(-TAIL.edge, TAIL.edge)
    square = inner.square()
    # At zero the slope is that of the heavy branch; releases of PyTorch differ in clamp's there.
    heavy = torch.where(h >= 0, h, torch.zeros_like(h))
    light = -3 * torch.where(h < 0, h, torch.zeros_like(h))
    curved = light > TAIL.tiny
    c2 = torch.where(curved, light, torch.ones_like(light))  # no root of 0 for its gradient
    c = c2.sqrt()
    value = torch.where(curved, torch.asinh(c * inner) / c, inner * (0.5 * heavy * square).exp())
    ladj = torch.where(
        curved,
        -0.5 * torch.log1p(c2 * square),
        0.5 * heavy * square + torch.log1p(heavy * square),
    )
    return value + (x - inner) * ladj.exp(), ladj


def _root(y: Tensor, h: Tensor) -> Tensor:
    r"""Return the x whose value is y, to rounding but for a few units.

    On the heavy branch :math:`x = y e^{-w/2}` with :math:`w e^w = h y^2`.
    """
    edge, slope = _map(torch.full_like(h, TAIL.edge), h)
    size = y.abs()
    inside = torch.minimum(size, edge)
    light = -3 * torch.where(h < 0, h, torch.zeros_like(h))
    curved = light > TAIL.tiny
    c = torch.where(curved, light, torch.ones_like(light)).sqrt()
    z = torch.where(h > 0, h, torch.zeros_like(h)) * inside.square()
    some = z > torch.finfo(z.dtype).tiny
    z = torch.where(some, z, torch.ones_like(z))
    w = torch.log1p(z)
    for _ in range(TAIL.lambert_steps):
        w = w / (1 + w) * (1 + torch.log(z / w))
    heavy = torch.where(some, inside * (-0.5 * w).exp(), inside)
    x = torch.where(curved, torch.sinh(c * inside) / c, heavy)
    x = torch.where(size > edge, TAIL.edge + (size - edge) * (-slope).exp(), x)
    return torch.where(size == size, torch.copysign(x, y), y)
