"""Univariate transformers: stateless maps of one number, whose parameters a conditioner supplies.

A transformer has ``num_params`` numbers per coordinate, taken from the last axis of ``params``; all
zeros mean the identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import soft_clamp, soft_clamp_slope
from pyro_nfvi._typing import Coordinates, EachImage, MapParams, TensorPair
from pyro_nfvi._validation import number
from pyro_nfvi._vjp import vjp
from pyro_nfvi.flows._recipe import BOUNDS


class Transformer(ABC):
    """A univariate map that a scheme (elementwise, coupling, autoregressive) drives.

    One of your own is a frozen dataclass with ``num_params``, ``forward`` and ``inverse``;
    all three schemes then drive it.

    Shape:
        ``x (*b, D)``, ``params (*b, D, num_params)``, or ``(D, num_params)`` where all rows share
        them -> ``y (*b, D)``, ``ladj (*b, D)`` or what broadcasts to it.
    """

    num_params: int
    #: How ``inverse`` works: by a closed form, or by a search for a root.
    inverse_kind: ClassVar[Literal["exact", "numeric"]] = "exact"
    #: Whether it maps angles, a whole turn further where they are a whole turn further.
    periodic: ClassVar[bool] = False

    @abstractmethod
    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        """Return ``(y, ladj)`` per coordinate."""

    @abstractmethod
    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        """Return ``(x, ladj)`` per coordinate."""

    def slopes(self, x: Coordinates, params: MapParams) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``dy/dx``, ``dy/dparams``, ``dladj/dx`` and ``dladj/dparams``.

        Coordinates are independent, so that two vector-Jacobian products give them all.
        """
        pull = vjp(self.forward, x, params)
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        dx, dparams = pull((ones, zeros))
        dladj_dx, dladj_dparams = pull((zeros, ones))
        return dx, dparams, dladj_dx, dladj_dparams


@dataclass(frozen=True)
class ShiftTransformer(Transformer):
    r"""Shift alone: :math:`y = x + \mu`, log-determinant 0 (NICE).

    Source: Dinh et al. 2015, arXiv:1410.8516, equation 9.
    """

    num_params: int = 1

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        return x + params[..., 0], torch.zeros_like(x)

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        return y - params[..., 0], torch.zeros_like(y)


@dataclass(frozen=True)
class AffineTransformer(Transformer):
    r"""Shift and bounded scale: :math:`y = \mu + e^{s} x`, :math:`|s| < c`.

    The log-scale is bounded smoothly, slope 1 at 0, so that no input makes it overflow.

    Source: Kingma et al. 2016, arXiv:1606.04934, equations 9-10, with Andrade's bound (2024,
    arXiv:2402.16408).
    """

    bound: float = BOUNDS.log_scale
    num_params: int = 2

    def __post_init__(self) -> None:
        number("AffineTransformer: bound", self.bound, above=0)

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.bound)
        return torch.addcmul(shift, log_scale.exp(), x), log_scale

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.bound)
        return (y - shift) * (-log_scale).exp(), -log_scale

    def slopes(self, x: Coordinates, params: MapParams) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raw = params[..., 1]
        scale, inner = soft_clamp(raw, self.bound).exp(), soft_clamp_slope(raw, self.bound)
        dparams = torch.stack([torch.ones_like(x), x * scale * inner], -1)
        dladj = torch.stack([torch.zeros_like(x), inner], -1)
        return scale, dparams, torch.zeros_like(x), dladj


@dataclass(frozen=True)
class GatedTransformer(Transformer):
    r"""Kingma's gate, normalised: :math:`y = \frac{\sigma(s+b)}{\sigma(b)} x + (1-\sigma(s+b)) m`.

    Stable, since a layer can hardly expand (at most by :math:`1/\sigma(b)`). Dividing by the
    gate's value at the bias makes zeros the identity.

    Source: Kingma et al. 2016, arXiv:1606.04934, equations 12-14 (b = 2 here); s is bounded.
    """

    bias: float = 2.0
    bound: float = BOUNDS.log_scale
    num_params: int = 2

    def __post_init__(self) -> None:
        number("GatedTransformer: bias", self.bias)
        number("GatedTransformer: bound", self.bound, above=0)

    def _gate(self, raw: Tensor) -> TensorPair:
        """Return the log of the normalised gate, and ``1 - gate``."""
        s = soft_clamp(raw, self.bound) + self.bias
        # The same expression at raw = 0 in the same dtype: the quotient is exactly 1 there.
        start = F.logsigmoid(soft_clamp(raw.new_zeros(()), self.bound) + self.bias)
        return F.logsigmoid(s) - start, torch.sigmoid(-s)

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        shift, raw = params.unbind(-1)
        log_gate, rest = self._gate(raw)
        return log_gate.exp() * x + rest * shift, log_gate

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        shift, raw = params.unbind(-1)
        log_gate, rest = self._gate(raw)
        return (y - rest * shift) * (-log_gate).exp(), -log_gate


@dataclass(frozen=True)
class ReLUTransformer(Transformer):
    r"""Parametric ReLU: :math:`y = x` above 0 and :math:`y = e^{s} x` below, :math:`|s| < c`.

    Between affine layers it makes a net that is a bijection, layer by layer.

    Source: He et al. 2015, arXiv:1502.01852, equation 1, with a positive slope.
    """

    bound: float = BOUNDS.log_slope
    num_params: int = 1

    def __post_init__(self) -> None:
        number("ReLUTransformer: bound", self.bound, above=0)

    def forward(self, x: Coordinates, params: MapParams) -> EachImage:
        log_slope = soft_clamp(params[..., 0], self.bound)
        negative = x < 0
        ladj = torch.where(negative, log_slope, torch.zeros_like(log_slope))
        return torch.where(negative, log_slope.exp() * x, x), ladj

    def inverse(self, y: Coordinates, params: MapParams) -> EachImage:
        log_slope = soft_clamp(params[..., 0], self.bound)
        negative = y < 0
        ladj = torch.where(negative, -log_slope, torch.zeros_like(log_slope))
        return torch.where(negative, (-log_slope).exp() * y, y), ladj
