"""An affine map that is trained relative to a given one."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi.flows._affine import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._low_rank_affine import LowRankAffine


@final
class WhitenedAffine(Flow):
    r"""A trained affine map inside a fixed one.

    .. math:: y = m + L\,(\mu + S x)

    :math:`\mu` and S are trained, m and L given, so that a step of an optimiser does the same
    whatever the units and correlations of y. Both are triangular, or, for many coordinates, S is
    diagonal and L diagonal with a few directions (:class:`LowRankAffine`).

    Args:
        loc: m, ``(D,)``.
        scale: L is ``scale`` times the identity at first.
        rank: Number of directions; None for triangular maps.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D^2) per row both ways, O(D rank) with directions.

    Example:
        >>> import torch
        >>> flow = WhitenedAffine(torch.ones(2), 3.0)
        >>> flow(torch.ones(2))[0].tolist()
        [4.0, 4.0]
        >>> flow.set_fixed(torch.zeros(2), torch.eye(2))
        >>> flow(torch.ones(2))[0].tolist()
        [1.0, 1.0]
    """

    def __init__(self, loc: Tensor, scale: float, rank: int | None = None) -> None:
        dim = len(loc)
        super().__init__(dim)
        trained: LowerTriangular | DiagonalAffine
        fixed: Affine | LowRankAffine
        if rank is None:
            tril = scale * torch.eye(dim, dtype=loc.dtype, device=loc.device)
            trained = LowerTriangular(dim)
            fixed = Affine(loc.clone(), scale_tril=tril, own=True)
        else:
            trained = DiagonalAffine(dim)
            across, none = loc.new_zeros(dim, rank), loc.new_zeros(rank)
            fixed = LowRankAffine(loc.clone(), torch.full_like(loc, scale), across, none)
        # Under the names that states of fits and Pyro's param store have had from the start.
        self.flows = nn.ModuleList([trained, fixed])

    @property
    def trained(self) -> LowerTriangular | DiagonalAffine:
        """The inner map."""
        found = self.flows[0]
        assert isinstance(found, LowerTriangular | DiagonalAffine)
        return found

    @property
    def fixed(self) -> Affine | LowRankAffine:
        """The outer map, whose numbers are buffers."""
        found = self.flows[1]
        assert isinstance(found, Affine | LowRankAffine)
        return found

    @torch.no_grad()
    def set_fixed(self, loc: Tensor, factor: Tensor) -> None:
        """Set the fixed map, and the trained one back to the identity.

        Args:
            loc: m, ``(D,)``.
            factor: L ``(D, D)``, or its diagonal ``(D,)`` for a map with directions.
        """
        trained, fixed = self.trained, self.fixed
        start = type(trained)(trained.dim).state_dict()
        trained.load_state_dict({name: value.to(loc) for name, value in start.items()})
        if isinstance(fixed, LowRankAffine):
            fixed.set_affine(loc, factor)
            return
        assert fixed.scale_tril is not None
        fixed.loc.copy_(loc)
        fixed.scale_tril.copy_(factor)

    @torch.no_grad()
    def set_directions(
        self, loc: Tensor, scale: Tensor, directions: Tensor, stretch: Tensor
    ) -> None:
        """Set a fixed map with directions, as :meth:`LowRankAffine.set_affine` does."""
        fixed = self.fixed
        assert isinstance(fixed, LowRankAffine)
        fixed.set_affine(loc, scale, directions, stretch)

    @torch.no_grad()
    def set_trained(self, loc: Tensor, scale: Tensor) -> None:
        """Set the trained map to a shift and a diagonal ``(D,)``."""
        trained = self.trained
        if isinstance(trained, LowerTriangular):
            trained.set_affine(loc, torch.diag(scale))
        else:
            trained.set_affine(loc, scale)

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        inner, inner_ladj = self.trained(x)
        y, ladj = self.fixed(inner)
        return y, inner_ladj + ladj

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        inner, ladj = self.fixed.inverse(y)
        x, inner_ladj = self.trained.inverse(inner)
        return x, ladj + inner_ladj

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, _ = self.enter(x, context)
        inner, inner_ladj, score = self.trained.forward_with_score(x, score.expand_as(x))
        y, ladj, score = self.fixed.forward_with_score(inner, score)
        return y, inner_ladj + ladj, score
