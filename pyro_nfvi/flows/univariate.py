"""Univariate kernels: stateless maps of one number, whose parameters a conditioner supplies.

A kernel has ``num_params`` numbers per coordinate, taken from the last axis of ``params``; all
zeros mean the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._typing import TensorPair
from pyro_nfvi.numerics import soft_clamp, soft_clamp_slope

__all__ = ["AffineKernel", "GatedKernel", "Kernel"]

#: Bound of the log-scale of a layer: a funnel's scale e^(v/2) needs about 4.5.
LOG_SCALE_BOUND = 5.0


class Kernel(Protocol):
    """What a scheme (elementwise, coupling, autoregressive) asks of a kernel."""

    @property
    def num_params(self) -> int:
        """Numbers per coordinate."""

    def forward(self, x: Tensor, params: Tensor) -> TensorPair:
        """Return ``(y, ladj)`` per coordinate; ``params (*b, D, num_params)``."""

    def inverse(self, y: Tensor, params: Tensor) -> TensorPair:
        """Return ``(x, ladj)`` per coordinate."""

    def slopes(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``dy/dx``, ``dy/dparams``, ``dladj/dx`` and ``dladj/dparams``."""


@dataclass(frozen=True)
class AffineKernel:
    r"""Shift and bounded scale: :math:`y = \mu + e^{s} x`, :math:`|s| < c`.

    The log-scale is bounded smoothly, slope 1 at 0, so that no input makes it overflow.

    Source: Kingma et al. 2016, arXiv:1606.04934, equations 9-10, with Andrade's bound (2024,
    arXiv:2402.16408).
    """

    bound: float = LOG_SCALE_BOUND
    num_params: int = 2

    def forward(self, x: Tensor, params: Tensor) -> TensorPair:
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.bound)
        return shift + log_scale.exp() * x, log_scale

    def inverse(self, y: Tensor, params: Tensor) -> TensorPair:
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.bound)
        return (y - shift) * (-log_scale).exp(), -log_scale

    def slopes(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raw = params[..., 1]
        scale, inner = soft_clamp(raw, self.bound).exp(), soft_clamp_slope(raw, self.bound)
        dparams = torch.stack([torch.ones_like(x), x * scale * inner], -1)
        dladj = torch.stack([torch.zeros_like(x), inner], -1)
        return scale, dparams, torch.zeros_like(x), dladj


@dataclass(frozen=True)
class GatedKernel:
    r"""Kingma's gate, normalised: :math:`y = \frac{\sigma(s+b)}{\sigma(b)} x + (1-\sigma(s+b)) m`.

    Stable, since a layer can hardly expand (at most by :math:`1/\sigma(b)`). Dividing by the
    gate's value at the bias makes zeros the identity.

    Source: Kingma et al. 2016, arXiv:1606.04934, equations 12-14 (b = 2 here); s is bounded.
    """

    bias: float = 2.0
    bound: float = LOG_SCALE_BOUND
    num_params: int = 2

    def _gate(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log of the normalised gate, and ``1 - gate``."""
        s = soft_clamp(raw, self.bound) + self.bias
        # The same expression at raw = 0 in the same dtype: the quotient is exactly 1 there.
        start = F.logsigmoid(soft_clamp(raw.new_zeros(()), self.bound) + self.bias)
        return F.logsigmoid(s) - start, torch.sigmoid(-s)

    def forward(self, x: Tensor, params: Tensor) -> TensorPair:
        shift, raw = params.unbind(-1)
        log_gate, rest = self._gate(raw)
        return log_gate.exp() * x + rest * shift, log_gate

    def inverse(self, y: Tensor, params: Tensor) -> TensorPair:
        shift, raw = params.unbind(-1)
        log_gate, rest = self._gate(raw)
        return (y - rest * shift) * (-log_gate).exp(), -log_gate

    def slopes(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shift, raw = params.unbind(-1)
        log_gate, rest = self._gate(raw)
        scale, inner = log_gate.exp(), soft_clamp_slope(raw, self.bound)
        dlog = rest * inner
        dparams = torch.stack([rest, (scale * x - (1 - rest) * shift) * dlog], -1)
        dladj = torch.stack([torch.zeros_like(x), dlog], -1)
        return scale, dparams, torch.zeros_like(x), dladj
