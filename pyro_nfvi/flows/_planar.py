"""Planar flows: one layer, and a chain of layers fused through their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from pyro_nfvi._math import (
    MIN_SLOPE,
    bounded,
    log_tanh_slope,
    one_plus_a,
    one_plus_a_inverse,
    sech2,
    solve_tanh,
    tanh_slope,
)
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._planar_recursion import tanh_recursion
from pyro_nfvi.flows._recipe import BOUNDS


def _limit(theta: TensorDict) -> TensorDict:
    """A context bends no sharper than |w| = e^5: the exponential of what a net gives has no end."""
    return {**theta, "log_norm": bounded(theta["log_norm"], BOUNDS.log_scale)}


def _initial(*shape: int) -> TensorDict:
    """Free parameters of layers of the given shape ``(*layers, D)``: random bends of size 0."""
    layers = shape[:-1]
    return {
        "v": torch.randn(shape),
        "log_norm": torch.zeros(layers),
        "u": torch.zeros(shape),
        "b": 0.5 * torch.randn(layers),
    }


def _effective(theta: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return ``w``, ``u_hat`` and ``1 + w.u_hat`` (kept apart: it must not cancel).

    ``w = e^g v/|v|`` is never 0; ``u_hat`` is u moved along w until ``w.u_hat = a > -1``.
    """
    v, u = theta["v"], theta["u"]
    # Large enough that its power -3/2 in the backward is finite: v = 0 has a gradient of 0.
    tiny = torch.finfo(v.dtype).eps ** 2
    direction = v * (v.square().sum(-1, keepdim=True) + tiny).rsqrt()
    norm = theta["log_norm"].exp().unsqueeze(-1)
    alpha = norm * (direction * u).sum(-1, keepdim=True)
    slope = one_plus_a(alpha)
    u_hat = u + (slope - 1 - alpha) / norm * direction
    return norm * direction, u_hat, slope.squeeze(-1)


@final
class Planar(ParamFlow):
    r"""One planar layer: a bend along w at the plane :math:`w^\top x + b = 0`.

    .. math::
        y = x + \hat u \tanh(w^\top x + b), \qquad
        \log|\det J| = \log(1 + a\,\mathrm{sech}^2(w^\top x + b)), \quad a = w^\top \hat u > -1

    The simplest flow. A layer moves mass along one direction only, so take many, and prefer
    :class:`PlanarChain` for more than a few.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D) per row both ways; the inverse solves one scalar equation.

    Raises:
        ShapeError: A point or context of the wrong size.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, equations 10-13 and appendix A.1.
    Differs: w has a free norm and direction, so that it is never 0, and a zero ``u`` is exactly
    the identity.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Planar
        >>> flow = Planar(3)
        >>> y, ladj = flow(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    inverse_kind = "numeric"  # to rounding: see _math.solve_tanh

    @classmethod
    def from_values(
        cls,
        w: Tensor | Sequence[float],
        u: Tensor | Sequence[float],
        b: Tensor | float = 0.0,
    ) -> Planar:
        """Build the layer whose effective parameters are exactly these.

        Raises:
            OptionError: ``w`` is 0, or ``w.u`` is not above -1, where the map has no inverse.

        Example:
            >>> flow = Planar.from_values(w=[5.0, 0.0], u=[1.0, 0.0], b=0.0)
            >>> flow.dim
            2
        """
        w = torch.as_tensor(w, dtype=None if isinstance(w, Tensor) else torch.get_default_dtype())
        u, b = torch.as_tensor(u, dtype=w.dtype), torch.as_tensor(b, dtype=w.dtype)
        if w.dim() != 1 or u.shape != w.shape or b.dim() != 0:
            raise ShapeError(
                "Planar.from_values needs w and u of one shape (D,) and a scalar b; got "
                f"{tuple(w.shape)}, {tuple(u.shape)} and {tuple(b.shape)}."
            )
        norm, slope = w.norm(), 1 + w @ u
        if not (norm > 0 and slope > MIN_SLOPE):
            raise OptionError(
                f"Planar.from_values needs a w that is not 0 and w.u > {MIN_SLOPE - 1:g}, below "
                f"which the map is not invertible; got |w| = {norm.item():g} and "
                f"w.u = {slope.item() - 1:g}."
            )
        alpha = one_plus_a_inverse(slope)
        free = u + (alpha - (slope - 1)) / norm * (w / norm)
        flow = cls(len(w)).to(dtype=w.dtype, device=w.device)
        values = {"v": w / norm, "log_norm": norm.log(), "u": free, "b": b}
        flow.params.load_state_dict(values)
        return flow

    def limit(self, theta: TensorDict) -> TensorDict:
        return _limit(theta)

    def init_params(self) -> TensorDict:
        return _initial(self.dim)

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        w, u_hat, slope = _effective(theta)
        t = (w * x).sum(-1) + theta["b"]
        return x + u_hat * torch.tanh(t).unsqueeze(-1), log_tanh_slope(t, slope)

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        w, u_hat, slope = _effective(theta)
        k = (w * y).sum(-1) + theta["b"]
        slope = slope.expand_as(k)
        t = solve_tanh(k, slope)
        return y - u_hat * torch.tanh(t).unsqueeze(-1), -log_tanh_slope(t, slope)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        w, u_hat, slope = _effective(theta)
        t = (w * x).sum(-1) + theta["b"]
        # Sherman-Morrison on J = I + sech2(t) u_hat w^T.
        decay, scale = sech2(t), tanh_slope(t, slope)
        bend = (1 - slope) * 2 * torch.tanh(t) * decay / scale
        score = score - w * bend.unsqueeze(-1)
        along = (u_hat * score).sum(-1)
        return score - w * (decay * along / scale).unsqueeze(-1)


@final
class PlanarChain(ParamFlow):
    r"""K planar layers run as one: the same map as K :class:`Planar` in a row, far cheaper.

    With :math:`S = xW^\top + b` and the Gram matrix :math:`G = W\hat U^\top`,

    .. math::
        t_k = S_k + \sum_{j<k} G_{kj} \tanh t_j, \qquad y = x + \tanh(t)\,\hat U,

    so that D enters in three matrix products and the recursion runs over K scalars.

    Args:
        dim: Event size D.
        num_layers: Number of layers K.
        context_dim: Size of the context; 0 for free parameters.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(KD + K^2) per row both ways; the inverse solves K scalar equations in a row.

    Raises:
        OptionError: ``num_layers`` is below 1.
        ShapeError: A point or context of the wrong size.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, equation 14; the Gram form is ours.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows._planar import PlanarChain
        >>> y, ladj = PlanarChain(3, num_layers=16)(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    inverse_kind = "numeric"

    def __init__(
        self, dim: int, num_layers: int, context_dim: int = 0, *, hidden_dim: int = 32
    ) -> None:
        # Before the parent's constructor, which asks for the parameters' shapes.
        self.num_layers = whole("PlanarChain: num_layers", num_layers)
        super().__init__(dim, context_dim, hidden_dim=hidden_dim)

    def limit(self, theta: TensorDict) -> TensorDict:
        return _limit(theta)

    def init_params(self) -> TensorDict:
        return _initial(self.num_layers, self.dim)

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        w, u_hat, slope = _effective(theta)
        pre = _project(x, w, theta["b"])
        t, h = tanh_recursion(pre, w @ u_hat.mT)
        y = x + _combine(h, u_hat)
        return y, log_tanh_slope(t, slope).sum(-1)

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        w, u_hat, slope = _effective(theta)
        rest = _project(y, w, theta["b"])
        gram = w @ u_hat.mT
        slope = slope.expand_as(rest)
        ts: list[Tensor] = []
        for k in reversed(range(self.num_layers)):
            rest, k_last = rest[..., :k], rest[..., k]
            t = solve_tanh(k_last, slope[..., k])
            ts.append(t)
            if k:
                # y = x + sum_j h_j u_j: what the later layers added is taken off all earlier
                # projections at once.
                rest = rest - torch.tanh(t).unsqueeze(-1) * gram[..., :k, k]
        t = torch.stack(ts[::-1], -1)
        return y - _combine(torch.tanh(t), u_hat), -log_tanh_slope(t, slope).sum(-1)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        w, u_hat, slope = _effective(theta)
        gram = w @ u_hat.mT
        t, h = tanh_recursion(_project(x, w, theta["b"]), gram)
        decay, scale = sech2(t), tanh_slope(t, slope)
        bend = (1 - slope) * 2 * h * decay / scale
        # The score stays in the span of the start and the w_k: follow its K coefficients.
        along = _project(score, u_hat, None)
        coefficients: list[Tensor] = []
        for k in range(self.num_layers):
            u_dot = along[..., k] - bend[..., k] * (slope[..., k] - 1)
            c = bend[..., k] + decay[..., k] * u_dot / scale[..., k]
            coefficients.append(c)
            along = along - c.unsqueeze(-1) * gram[..., k, :]
        return score - _combine(torch.stack(coefficients, -1), w)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", num_layers={self.num_layers}"


def _project(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Inner products of each row with the K vectors: ``(*b, D), (*c, K, D) -> (*b, K)``."""
    if w.dim() == 2:
        return torch.nn.functional.linear(x, w, b)
    products = (w @ x.unsqueeze(-1)).squeeze(-1)
    return products if b is None else products + b


def _combine(h: Tensor, u: Tensor) -> Tensor:
    """Sum the K vectors with weights: ``(*b, K), (*c, K, D) -> (*b, D)``."""
    return h @ u if u.dim() == 2 else (h.unsqueeze(-2) @ u).squeeze(-2)
