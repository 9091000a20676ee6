"""An affine map that is trained relative to a given map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._affine import Affine, DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._block_arrow import ArrowFactor
from pyro_nfvi.flows._block_arrow_affine import BlockArrowAffine
from pyro_nfvi.flows._conditional_affine import ConditionalAffine, ConditionalStage
from pyro_nfvi.flows._low_rank_affine import LowRankAffine
from pyro_nfvi.flows._mixture_map import MixtureBlocks, MixtureMap

#: What holds the given numbers.
FixedMap: TypeAlias = Affine | LowRankAffine | BlockArrowAffine | MixtureMap | ConditionalAffine
#: Those of another form than an affine map has.
_OTHERS = (BlockArrowAffine, MixtureMap, ConditionalAffine)


@final
class WhitenedAffine(Flow):
    r"""A trained affine map inside a fixed one.

    .. math:: y = m + L\,(\mu + S x)

    :math:`\mu` and S are trained, m and L given, so that a step of an optimiser does the same
    whatever the units and correlations of y. Both are triangular, or, for many coordinates, S is
    diagonal and L diagonal with a few directions (:class:`LowRankAffine`), or a block arrow
    (:class:`~pyro_nfvi.flows._block_arrow_affine.BlockArrowAffine`) once :meth:`set_arrow` was
    called, and after the state of such a map was loaded. After :meth:`set_mixture` the fixed map is
    that of a product of Gaussian mixtures (:class:`~pyro_nfvi.flows._mixture_map.MixtureMap`);
    after :meth:`set_conditional`, one whose scales follow other coordinates
    (:class:`~pyro_nfvi.flows._conditional_affine.ConditionalAffine`).

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
        fixed: FixedMap
        if rank is None:
            tril = scale * torch.eye(dim, dtype=loc.dtype, device=loc.device)
            trained = LowerTriangular(dim)
            fixed = Affine(loc.clone(), scale_tril=tril, own=True)
        else:
            trained = DiagonalAffine(dim)
            across, none = loc.new_zeros(dim, rank), loc.new_zeros(rank)
            fixed = LowRankAffine(loc.clone(), torch.full_like(loc, scale), across, none)
        self._rank = 0 if rank is None else rank
        # Under the names that states of fits and Pyro's param store have had from the start.
        self.flows = nn.ModuleList([trained, fixed])

    @property
    def trained(self) -> LowerTriangular | DiagonalAffine:
        """The inner map."""
        found = self.flows[0]
        assert isinstance(found, LowerTriangular | DiagonalAffine)
        return found

    @property
    def fixed(self) -> FixedMap:
        """The outer map, whose numbers are buffers."""
        found = self.flows[1]
        assert isinstance(found, (Affine, LowRankAffine, *_OTHERS))
        return found

    @property
    def holds_mixture(self) -> bool:
        """True where the fixed map is that of mixtures."""
        return isinstance(self.fixed, MixtureMap)

    @property
    def holds_conditional(self) -> bool:
        """True where the fixed map is that of coordinates relative to others."""
        return isinstance(self.fixed, ConditionalAffine)

    @torch.no_grad()
    def set_fixed(self, loc: Tensor, factor: Tensor) -> None:
        """Set the fixed map, and the trained one back to the identity.

        Args:
            loc: m, ``(D,)``.
            factor: L ``(D, D)``, or its diagonal ``(D,)`` for a map with directions.
        """
        self._reset()
        if isinstance(self.fixed, _OTHERS):
            self._hold_affine()
        fixed = self.fixed
        if isinstance(fixed, LowRankAffine):
            fixed.set_affine(loc, factor)
            return
        assert isinstance(fixed, Affine)
        assert fixed.scale_tril is not None
        fixed.loc.copy_(loc)
        fixed.scale_tril.copy_(factor)

    def _reset(self) -> None:
        """Set the trained map back to the identity."""
        trained = self.trained
        start, like = type(trained)(trained.dim).state_dict(), next(trained.parameters())
        trained.load_state_dict({name: value.to(like) for name, value in start.items()})

    def _hold_affine(self) -> None:
        """Put a triangular map, or one with directions, in the place of an arrow or mixtures."""
        like, rank = self.fixed.loc, self._rank
        if isinstance(self.trained, LowerTriangular):
            eye = torch.eye(self.dim, dtype=like.dtype, device=like.device)
            self.flows[1] = Affine(like.clone(), scale_tril=eye, own=True)
            return
        across, none = like.new_zeros(self.dim, rank), like.new_zeros(rank)
        self.flows[1] = LowRankAffine(like.clone(), torch.ones_like(like), across, none)

    @torch.no_grad()
    def set_arrow(self, loc: Tensor, factor: ArrowFactor) -> None:
        """Set the fixed map to a block arrow, and the trained one back to the identity.

        Args:
            loc: m, ``(D,)``.
            factor: L.

        Raises:
            OptionError: The trained map is triangular, which needs no arrow.
        """
        if isinstance(self.trained, LowerTriangular):
            raise OptionError("set_arrow is for maps with a rank; call set_fixed(loc, factor).")
        self._reset()
        like = self.fixed.loc
        self.flows[1] = BlockArrowAffine(loc.to(like), factor.to(like))

    @torch.no_grad()
    def set_mixture(self, blocks: Sequence[MixtureBlocks]) -> None:
        """Set the fixed map to that of mixtures, and the trained one back to the identity.

        Args:
            blocks: Mixtures; each coordinate is in one block.

        Raises:
            ShapeError: A coordinate is in no block, or in two.
        """
        like = self.fixed.loc
        made = MixtureMap([group.to(like) for group in blocks])
        self._reset()
        self.flows[1] = made

    @torch.no_grad()
    def set_conditional(
        self, loc: Tensor, factor: Tensor, stages: Sequence[ConditionalStage]
    ) -> None:
        """Set a fixed map with coordinates relative to others, as :class:`ConditionalAffine` has.

        The trained map goes back to the identity.

        Args:
            loc: m, ``(D,)``.
            factor: L ``(D, D)``, or its diagonal ``(D,)``.
            stages: Coordinates that follow others.

        Raises:
            ShapeError: A coordinate stands in two stages, or follows a later one.
        """
        like = self.fixed.loc
        made = ConditionalAffine(
            loc.to(like), factor.to(like), [stage.to(like) for stage in stages]
        )
        self._reset()
        self.flows[1] = made

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

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Hold the kind of fixed map whose numbers come, before they are copied."""
        head = f"{prefix}flows.1."
        state = {
            name.removeprefix(head): value
            for name, value in state_dict.items()
            if name.startswith(head)
        }
        if "log_scales_0" in state:
            self.flows[1] = ConditionalAffine.from_state(state, self.fixed.loc)
        elif "positions_0" in state:
            made = MixtureMap if "logits_0" in state else BlockArrowAffine
            self.flows[1] = made.from_state(state, self.fixed.loc)
        elif isinstance(self.fixed, _OTHERS):
            self._hold_affine()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
