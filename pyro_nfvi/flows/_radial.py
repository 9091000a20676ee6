"""Radial flows: an expansion or contraction around a centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import RAW_ONE, softplus_inverse
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._recipe import BOUNDS


@final
class Radial(ParamFlow):
    r"""One radial layer: points move towards or away from a centre :math:`z_0`.

    .. math::
        y = x + \frac{\beta}{\alpha + r}(x - z_0), \quad r = |x - z_0|, \qquad
        \log|\det J| = (D-1)\log\frac{\alpha+\beta+r}{\alpha+r}
            + \log\frac{r^2 + 2\alpha r + \alpha(\alpha+\beta)}{(\alpha+r)^2}

    with :math:`\alpha > 0` and :math:`\alpha + \beta > 0`. One bump a layer: the weakest
    family per parameter, offered for comparison.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D) per row both ways; the inverse is a closed form.

    Raises:
        ShapeError: A point or context of the wrong size.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, equations 14-15 and appendix A.2.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Radial
        >>> y, ladj = Radial(3)(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    @classmethod
    def from_values(
        cls, z0: Tensor | Sequence[float], alpha: Tensor | float, beta: Tensor | float
    ) -> Radial:
        """Build the layer with this centre, alpha and beta.

        Raises:
            OptionError: ``alpha`` or ``alpha + beta`` is not above 0.001.

        Example:
            >>> Radial.from_values(z0=[1.0, 0.0], alpha=2.0, beta=5.0).dim
            2
        """
        z0 = torch.as_tensor(
            z0, dtype=None if isinstance(z0, Tensor) else torch.get_default_dtype()
        )
        alpha, beta = torch.as_tensor(alpha, dtype=z0.dtype), torch.as_tensor(beta, dtype=z0.dtype)
        if z0.dim() != 1 or alpha.dim() != 0 or beta.dim() != 0:
            raise ShapeError(
                "Radial.from_values needs z0 of shape (D,) and scalar alpha and beta; got "
                f"{tuple(z0.shape)}, {tuple(alpha.shape)} and {tuple(beta.shape)}."
            )
        if not (alpha > BOUNDS.radial and alpha + beta > BOUNDS.radial):
            raise OptionError(
                f"Radial.from_values needs alpha and alpha + beta above {BOUNDS.radial}; got "
                f"alpha = {alpha.item():g} and beta = {beta.item():g}."
            )
        flow = cls(len(z0)).to(dtype=z0.dtype, device=z0.device)
        values = {
            "z0": z0,
            "alpha": softplus_inverse(alpha - BOUNDS.radial),
            "gamma": softplus_inverse(alpha + beta - BOUNDS.radial),
        }
        flow.params.load_state_dict(values)
        return flow

    def init_params(self) -> TensorDict:
        # Equal alpha and gamma: beta = 0, the identity.
        return {
            "z0": 0.5 * torch.randn(self.dim),
            "alpha": torch.tensor(RAW_ONE),
            "gamma": torch.tensor(RAW_ONE),
        }

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        z0, alpha, gamma = _effective(theta)
        d = x - z0
        r = _norm(d)
        a = alpha + r
        across = (gamma + r) / a
        # Exactly 1 at beta = 0, so that the identity is exact.
        y = torch.addcmul(x, (across - 1).unsqueeze(-1), d)
        return y, self._ladj(r, a, alpha, across)

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        z0, alpha, gamma = _effective(theta)
        radius = _norm(y - z0)
        # r solves r^2 + (gamma - R) r - alpha R = 0: take the form that does not cancel.
        c = gamma - radius
        root = (c.square() + 4 * alpha * radius).sqrt()
        positive = c >= 0
        r = torch.where(
            positive,
            2 * alpha * radius / torch.where(positive, c + root, torch.ones_like(c)),
            (root - c) / 2,
        )
        x = z0 + (y - z0) * ((alpha + r) / (gamma + r)).unsqueeze(-1)
        a = alpha + r
        return x, -self._ladj(r, a, alpha, (gamma + r) / a)

    def _ladj(self, r: Tensor, a: Tensor, alpha: Tensor, across: Tensor) -> Tensor:
        """Log-determinant at the radius r from the slope across, with ``a = alpha + r``."""
        # Both slopes as sums of positive terms: nothing cancels as they go to 0.
        along = torch.addcmul(r, alpha, across) / a
        return torch.add(along.log(), across.log(), alpha=self.dim - 1)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        z0, alpha, gamma = _effective(theta)
        r = _norm(x - z0)
        unit = (x - z0) / r.unsqueeze(-1)
        # J = across (I - n n^T) + along n n^T, with n the unit vector from the centre.
        across = (gamma + r) / (alpha + r)
        numerator = r.square() + 2 * alpha * r + alpha * gamma
        along = numerator / (alpha + r).square()
        slope = (self.dim - 1) * (1 / (gamma + r) - 1 / (alpha + r)) + (
            2 * (r + alpha) / numerator - 2 / (alpha + r)
        )
        score = score - slope.unsqueeze(-1) * unit
        inner = (unit * score).sum(-1)
        return score / across.unsqueeze(-1) + unit * (inner * (1 / along - 1 / across)).unsqueeze(
            -1
        )


def _effective(theta: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    alpha, gamma = (
        F.softplus(theta["alpha"]) + BOUNDS.radial,
        F.softplus(theta["gamma"]) + BOUNDS.radial,
    )
    return theta["z0"], alpha, gamma


def _norm(d: Tensor) -> Tensor:
    # The tiny term keeps the gradient finite at the centre.
    return ((d * d).sum(-1) + 1e-30).sqrt()
