"""The rational-quadratic spline, as a univariate transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import bounded
from pyro_nfvi._typing import Coordinates, EachImage, MapParams, TensorPair
from pyro_nfvi._validation import number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._recipe import SPLINE
from pyro_nfvi.flows._transformers import AffineTransformer, Transformer


@dataclass(frozen=True)
class SplineTransformer(Transformer):
    r"""Monotone rational-quadratic spline on [-B, B], linear outside, then shift and scale.

    In the bin between knots :math:`(x_k, y_k)` of width w, height h, slope :math:`s = h/w` and
    knot derivatives :math:`d_0, d_1`, with :math:`\xi = (x - x_k)/w`,

    .. math::
        y = y_k + h \frac{s \xi^2 + d_0 \xi(1-\xi)}{s + (d_0 + d_1 - 2s)\xi(1-\xi)}

    Outside [-B, B] the map continues with slope 1: the tails of the base survive. The affine
    map behind it moves and scales the whole.

    Args:
        bins: Number of bins, at least 2.
        bound: B, in the coordinates of the base (standardised in a guide).

    Source: Durkan et al. 2019, arXiv:1906.04032, equations 4-8 and appendix A.1; the quadratic
    is solved in the form that does not cancel, and polished by a Newton step.
    """

    bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        # Frozen, so that a transformer is a value; what it keeps are Python's own numbers.
        object.__setattr__(self, "bins", whole("SplineTransformer: bins", self.bins, 2))
        object.__setattr__(self, "bound", number("SplineTransformer: bound", self.bound, above=0))
        if self.bins >= 1 / SPLINE.least_bin:
            raise OptionError(f"A spline needs between 2 and 999 bins; got {self.bins}.")

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Widths, heights, inner derivatives, shift and log-scale."""
        return 3 * self.bins + 1

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        raw, affine = params.split([3 * self.bins - 1, 2], -1)
        y, ladj = self._spline(x, raw)
        y, affine_ladj = AffineTransformer().forward(y, affine)
        return y, ladj + affine_ladj

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        raw, affine = params.split([3 * self.bins - 1, 2], -1)
        inner, affine_ladj = AffineTransformer().inverse(y, affine)
        x, ladj = self._spline_inverse(inner, raw)
        return x, ladj + affine_ladj

    def _spline(self, x: Tensor, raw: Tensor) -> TensorPair:
        inside = x.abs() < self.bound
        clipped = torch.where(inside, x, torch.zeros_like(x))
        y, ladj = in_bin(clipped, *find_bin(clipped, raw, self.bins, self.bound, vertical=False))
        return torch.where(inside, y, x), torch.where(inside, ladj, torch.zeros_like(ladj))

    def _spline_inverse(self, y: Tensor, raw: Tensor) -> TensorPair:
        inside = y.abs() < self.bound
        clipped = torch.where(inside, y, torch.zeros_like(y))
        x, ladj = invert_in_bin(
            clipped, *find_bin(clipped, raw, self.bins, self.bound, vertical=True)
        )
        return torch.where(inside, x, y), torch.where(inside, ladj, torch.zeros_like(ladj))


def find_bin(
    value: Tensor, raw: Tensor, bins: int, bound: float, *, vertical: bool
) -> tuple[Tensor, ...]:
    """Left knot, width, height and derivatives of the bin of each value on an axis.

    With as many derivatives as bins, the last one is that of both ends, as on a circle; with
    one less, both ends have slope 1.

    Whatever can be is computed of the two knots in question alone: the parameters are many
    times as many as the values. The two knots and the two axes lead, since broadcasting along
    short last axes is slow.
    """
    k, span = bins, 2 * bound
    raw_sizes, raw_d = raw.split([2 * k, raw.shape[-1] - 2 * k], -1)
    # The sums of a softmax, up to their total; bounded numbers need no maximum.
    sums = bounded(raw_sizes, SPLINE.logit).exp().unflatten(-1, (2, k)).cumsum(-1)
    free = 1 - k * SPLINE.least_bin
    with torch.no_grad():
        axis = sums[..., int(vertical), :]
        inner = axis[..., :-1] * (free / axis[..., -1:])
        inner = inner + SPLINE.least_bin * torch.arange(
            1, k, dtype=inner.dtype, device=inner.device
        )
        place = ((value + bound) / span).unsqueeze(-1)
        left = (place >= inner).sum(-1)
        knot = torch.stack([left, left + 1])
        first, last = knot == 0, knot == k
        before = (knot - 1).clamp_min(0)
        whole = torch.full_like(left, k - 1)
        wanted = torch.stack([*before, *(before + k), whole, whole + k], -1)
        least = SPLINE.least_bin * knot.to(inner.dtype)
    found = sums.flatten(-2).expand(*value.shape, 2 * k).gather(-1, wanted)
    up_to, totals = found.movedim(-1, 0).contiguous().split([4, 2])
    share = up_to.unflatten(0, (2, 2)) * (free / totals).unsqueeze(1) + least
    # The ends are pinned: a rounded sum must not move them.
    share = share.masked_fill(first, 0.0).masked_fill(last, 1.0)
    (x0, x1), (y0, y1) = (span * share - bound).unbind()
    circular = raw_d.shape[-1] == k
    near = (knot - 1) % k if circular else before.clamp_max(k - 2)
    raw_d = raw_d.expand(*value.shape, raw_d.shape[-1]).gather(-1, near.movedim(0, -1))
    raw_d = raw_d.movedim(-1, 0).contiguous()
    # softplus(0 + start) = 1 - least slope = one: zeros give slope 1, exactly.
    start = math.log(math.expm1(1 - SPLINE.least_slope))
    one = F.softplus(raw_d.new_full((), start))
    d = F.softplus(bounded(raw_d, SPLINE.logit) + start) + (1 - one)
    d0, d1 = (d if circular else d.masked_fill(first | last, 1.0)).unbind()
    return x0, x1 - x0, y0, y1 - y0, d0, d1


def in_bin(
    x: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> TensorPair:
    """Return the value and the logarithm of the slope within a bin."""
    s, xi = h / w, (x - x0) / w
    rest = 1 - xi
    cross = xi * rest
    quotient = s / (s + (d0 + d1 - 2 * s) * cross)
    y = y0 + w * quotient * (s * xi.square() + d0 * cross)
    slope = d1 * xi.square() + 2 * s * cross + d0 * rest.square()
    return y, (quotient.square() * slope).log()


def invert_in_bin(
    y: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> TensorPair:
    """Solve for x within its bin; return it with its log-determinant."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            x = _solve_in_bin(y, x0, w, y0, h, d0, d1)
        # Two Newton steps carry first and second derivatives, exactly; the value stays, for
        # where the slope is least a step in float32 would leave the bin.
        for _ in range(2):
            again, ladj = in_bin(x, x0, w, y0, h, d0, d1)
            step = (again - y) * (-ladj).exp()
            x = x - (step - step.detach())
    else:
        x = _solve_in_bin(y, x0, w, y0, h, d0, d1)
    _, ladj = in_bin(x, x0, w, y0, h, d0, d1)
    return x, -ladj


def _solve_in_bin(
    y: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> Tensor:
    s, rise = h / w, y - y0
    bend = d0 + d1 - 2 * s
    a = h * (s - d0) + rise * bend
    b = h * d0 - rise * bend
    # Positive in exact arithmetic; rounding at a knot must not reach the square root.
    root = (b.square() + 4 * a * s * rise).clamp_min(0).sqrt()
    x = x0 + w * (2 * s * rise / (b + root)).clamp(0, 1)
    # The discriminant may cancel: a Newton step polishes, within the bin.
    again, ladj = in_bin(x, x0, w, y0, h, d0, d1)
    return torch.minimum(torch.maximum(x - (again - y) * (-ladj).exp(), x0), x0 + w)
