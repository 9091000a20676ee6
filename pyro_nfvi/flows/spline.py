"""The rational-quadratic spline, as a univariate kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows.univariate import AffineKernel, Kernel
from pyro_nfvi.numerics import soft_clamp

__all__ = ["SplineKernel"]

#: Least width and height of a bin, as a part of the whole, and least slope at a knot.
_MIN_BIN = 1e-3
_MIN_SLOPE = 1e-3
#: Bound of the free numbers behind them: keeps the inverse well conditioned wherever a
#: conditioner goes.
_LOGIT_BOUND = 3.0


@dataclass(frozen=True)
class SplineKernel(Kernel):
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
        whole = isinstance(self.bins, int) and not isinstance(self.bins, bool)
        number = isinstance(self.bound, int | float) and not isinstance(self.bound, bool)
        if not (whole and 2 <= self.bins < 1 / _MIN_BIN and number and 0 < self.bound < math.inf):
            raise OptionError(
                "A spline needs between 2 and 999 bins and a positive bound; got "
                f"bins={self.bins!r}, bound={self.bound!r}."
            )

    @property
    def num_params(self) -> int:  # type: ignore[override]
        """Widths, heights, inner derivatives, shift and log-scale."""
        return 3 * self.bins + 1

    def forward(self, x: Tensor, params: Tensor) -> TensorPair:
        spline, affine = params[..., :-2], params[..., -2:]
        y, ladj = self._spline(x, spline)
        y, affine_ladj = AffineKernel().forward(y, affine)
        return y, ladj + affine_ladj

    def inverse(self, y: Tensor, params: Tensor) -> TensorPair:
        spline, affine = params[..., :-2], params[..., -2:]
        inner, affine_ladj = AffineKernel().inverse(y, affine)
        x, ladj = self._spline_inverse(inner, spline)
        return x, ladj + affine_ladj

    def _knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knot positions ``(*b, K+1)`` in x and in y, and the derivatives there."""
        k, span = self.bins, 2 * self.bound
        raw_x, raw_y, raw_d = soft_clamp(params, _LOGIT_BOUND).split([k, k, k - 1], -1)
        positions = []
        for raw in (raw_x, raw_y):
            size = _MIN_BIN + (1 - k * _MIN_BIN) * torch.softmax(raw, -1)
            inner = span * size.cumsum(-1)[..., :-1] - self.bound
            # The ends are pinned: a rounded sum must not move them.
            positions.append(
                F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)
            )
        # softplus(0 + start) = 1 - least slope: zeros give slope 1.
        start = math.log(math.expm1(1 - _MIN_SLOPE))
        one = F.softplus(raw_d.new_full((), start))
        inner_d = _MIN_SLOPE + (1 - _MIN_SLOPE) * F.softplus(raw_d + start) / one
        derivatives = F.pad(inner_d, (1, 1), value=1.0)
        return positions[0], positions[1], derivatives

    def _bin(
        self, value: Tensor, axis: Tensor, xs: Tensor, ys: Tensor, ds: Tensor
    ) -> tuple[Tensor, ...]:
        """Left knot, width, height and derivatives of the bin of each value on an axis."""
        index = (value.unsqueeze(-1) >= axis[..., 1:-1]).sum(-1, keepdim=True)

        def at(knots: Tensor, shift: int = 0) -> Tensor:
            knots = knots.expand(*index.shape[:-1], knots.shape[-1])
            return knots.gather(-1, index + shift).squeeze(-1)

        x0, y0 = at(xs), at(ys)
        return x0, at(xs, 1) - x0, y0, at(ys, 1) - y0, at(ds), at(ds, 1)

    def _spline(self, x: Tensor, params: Tensor) -> TensorPair:
        xs, ys, ds = self._knots(params)
        inside = x.abs() < self.bound
        clipped = torch.where(inside, x, torch.zeros_like(x))
        x0, w, y0, h, d0, d1 = self._bin(clipped, xs, xs, ys, ds)
        y, ladj = _in_bin(clipped, x0, w, y0, h, d0, d1)
        return torch.where(inside, y, x), torch.where(inside, ladj, torch.zeros_like(ladj))

    def _spline_inverse(self, y: Tensor, params: Tensor) -> TensorPair:
        xs, ys, ds = self._knots(params)
        inside = y.abs() < self.bound
        clipped = torch.where(inside, y, torch.zeros_like(y))
        x0, w, y0, h, d0, d1 = self._bin(clipped, ys, xs, ys, ds)
        with torch.no_grad():
            s, rise = h / w, clipped - y0
            bend = d0 + d1 - 2 * s
            a = h * (s - d0) + rise * bend
            b = h * d0 - rise * bend
            # Positive in exact arithmetic; rounding at a knot must not reach the square root.
            root = (b.square() + 4 * a * s * rise).clamp_min(0).sqrt()
            x = x0 + w * (2 * s * rise / (b + root)).clamp(0, 1)
        # Two Newton steps polish it and carry first and second derivatives, exactly.
        for _ in range(2):
            again, ladj = _in_bin(x, x0, w, y0, h, d0, d1)
            x = x - (again - clipped) * (-ladj).exp()
        _, ladj = _in_bin(x, x0, w, y0, h, d0, d1)
        return torch.where(inside, x, y), torch.where(inside, -ladj, torch.zeros_like(ladj))


def _in_bin(
    x: Tensor, x0: Tensor, w: Tensor, y0: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> TensorPair:
    s, xi = h / w, (x - x0) / w
    rest = 1 - xi
    cross = xi * rest
    denominator = s + (d0 + d1 - 2 * s) * cross
    y = y0 + h * (s * xi.square() + d0 * cross) / denominator
    slope = d1 * xi.square() + 2 * s * cross + d0 * rest.square()
    return y, 2 * s.log() + slope.log() - 2 * denominator.log()
