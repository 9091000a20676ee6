"""An affine map that stretches along a few directions."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._base import Flow


@final
class LowRankAffine(Flow):
    r"""Diagonal plus low rank, with given numbers.

    .. math:: y = \mu + \sigma \odot (x + U(c \odot U^\top x))

    U has orthonormal columns, so that column k is stretched by :math:`1 + c_k`, and nothing else
    is. The log-determinant :math:`\sum_i \log\sigma_i + \sum_k \log(1 + c_k)` and the inverse, the
    same map with :math:`-c/(1+c)`, are exact. It trains nothing: its numbers are buffers, saved
    with its state. Columns of zeros count for nothing, with :math:`c_k = 0`.

    Args:
        loc: Shift :math:`\mu`, ``(D,)``.
        scale: Positive scale :math:`\sigma`, ``(D,)``.
        directions: U ``(D, R)``, columns orthonormal or zero.
        stretch: c ``(R,)``, above -1.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D R) per row both ways.

    Raises:
        OptionError: Sizes that do not fit, or a stretch of -1 or less.
        ShapeError: A point of another size or dtype.

    Source: the factor of a covariance that is diagonal but for few directions, as in Ong et al.
    2018, arXiv:1701.03208, in the symmetric form that has its inverse at hand.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import LowRankAffine
        >>> along = torch.full((4, 1), 0.5)
        >>> flow = LowRankAffine(torch.zeros(4), torch.ones(4), along, torch.tensor([2.0]))
        >>> flow(torch.ones(4))[0]
        tensor([3., 3., 3., 3.])
    """

    def __init__(self, loc: Tensor, scale: Tensor, directions: Tensor, stretch: Tensor) -> None:
        fits = loc.dim() == 1 and scale.shape == loc.shape and stretch.dim() == 1
        if not fits or directions.shape != (len(loc), len(stretch)):
            raise OptionError(
                "LowRankAffine needs loc (D,), scale (D,), directions (D, R) and stretch (R,); got "
                f"{tuple(loc.shape)}, {tuple(scale.shape)}, {tuple(directions.shape)} and "
                f"{tuple(stretch.shape)}."
            )
        if not bool((stretch > -1).all()):
            raise OptionError("LowRankAffine needs every stretch above -1, to have an inverse.")
        super().__init__(len(loc))
        named = {"loc": loc, "diagonal": scale, "directions": directions, "stretch": stretch}
        for name, value in named.items():
            self.register_buffer(name, value)
        self.loc: Tensor
        self.diagonal: Tensor
        self.directions: Tensor
        self.stretch: Tensor

    @torch.no_grad()
    def set_affine(
        self,
        loc: Tensor,
        scale: Tensor,
        directions: Tensor | None = None,
        stretch: Tensor | None = None,
    ) -> None:
        """Set the numbers, with at most R directions; none is a diagonal map."""
        self.loc.copy_(loc)
        self.diagonal.copy_(scale)
        self.directions.zero_()
        self.stretch.zero_()
        if directions is not None and stretch is not None:
            self.directions[:, : len(stretch)] = directions
            self.stretch[: len(stretch)] = stretch

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super().enter(x, context)
        if x.dtype != self.loc.dtype:
            raise ShapeError(
                f"LowRankAffine(dim={self.dim}) has numbers of {self.loc.dtype}; got a point of "
                f"{x.dtype}. Convert the point with .to(dtype), or the flow with .double()."
            )
        return x, context

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        return self.loc + self.diagonal * self._along(x, self.stretch), self._ladj(x)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        return self._along((y - self.loc) / self.diagonal, self._back()), -self._ladj(y)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        with torch.no_grad():
            return y, ladj, self._along(score.expand_as(y), self._back()) / self.diagonal

    def _along(self, x: Tensor, stretch: Tensor) -> Tensor:
        return x + ((x @ self.directions) * stretch) @ self.directions.mT

    def _back(self) -> Tensor:
        return -self.stretch / (1 + self.stretch)

    def _ladj(self, x: Tensor) -> Tensor:
        ladj = self.diagonal.log().sum(-1) + self.stretch.log1p().sum(-1)
        return ladj.expand(x.shape[:-1])

    def extra_repr(self) -> str:
        return super().extra_repr() + f", rank={len(self.stretch)}"
