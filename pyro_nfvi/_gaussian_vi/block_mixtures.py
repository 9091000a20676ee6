"""Mixtures of the modes of independent blocks of latents, whose product is the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.block_places import BlockPlaces, find_places
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.learnt_mixture import LearntMixture, learn_mixture
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.random_search import heights
from pyro_nfvi._gaussian_vi.recipe import BLOCK_MIXTURES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._gaussian_vi.unseen_starts import UnseenStarts
from pyro_nfvi.flows._mixture_map import GlobalSlopes, MixtureBlocks


@dataclass(frozen=True, eq=False)
class BlockModes:
    """A block of latents, its modes, and a mixture of Gaussians on them.

    Attributes:
        index: Places of its latents ``(d,)``.
        mixture: The mixture of Gaussians.
        places: Its modes and their tops.
    """

    index: Tensor
    mixture: LearntMixture
    places: BlockPlaces

    @property
    def num_modes(self) -> int:
        """Number of its modes."""
        return self.places.num_modes

    def tops_and_masses(self) -> tuple[Tensor, Tensor]:
        """Return a top of each mode ``(M, d)``, and the share of the mass of each ``(M,)``.

        The mass is that of the components to whose means a top of the mode is nearest.
        """
        places, mixture = self.places, self.mixture
        away = places.tops - mixture.locs.unsqueeze(1)
        eps = torch.linalg.solve_triangular(mixture.factors, away.mT, upper=False)
        mode = places.mode[eps.square().sum(1).argmin(-1).cpu()]
        mass = torch.zeros(self.num_modes, dtype=torch.float64)
        mass = mass.index_add(0, mode, mixture.log_weights.exp().cpu())
        evidence = places.log_evidence.cpu()
        first = [
            int(evidence.masked_fill(places.mode != mode, -torch.inf).argmax())
            for mode in range(self.num_modes)
        ]
        return places.tops[first], mass


@dataclass(frozen=True, eq=False)
class GivenGlobals:
    """Slopes by which the mixtures of blocks follow the globals, linearly.

    Attributes:
        positions: Places of the p globals ``(p,)``, the first block.
        centre: Values at which the mixtures are those of the blocks ``(p,)``.
        logits: Slopes of the logits of each other block, ``(K, p)`` each.
        locs: Slopes of its means, ``(K, d, p)`` each.
    """

    positions: Tensor
    centre: Tensor
    logits: tuple[Tensor, ...]
    locs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class ModeProduct:
    """A product of mixtures over independent blocks of latents.

    Attributes:
        blocks: The blocks, which hold each latent once.
        num_starts: Starts that ascended.
        num_points: Points that were scored to learn the mixtures.
        finished: True if nothing was left out for lack of time.
        given: Globals, the first block, given which the others are independent; None where they are
            so by themselves.
    """

    blocks: tuple[BlockModes, ...]
    num_starts: int
    num_points: int
    finished: bool = True
    given: GivenGlobals | None = None

    @property
    def log_modes(self) -> float:
        """Logarithm of the number of modes of the whole."""
        return sum(math.log(block.num_modes) for block in self.blocks)

    @property
    def unseen(self) -> UnseenStarts:
        """The estimates of all blocks as one: shares as of independent events."""
        each = [block.places.unseen for block in self.blocks]
        return UnseenStarts(
            starts=self.num_starts,
            ends=sum(one.ends for one in each),
            alone=sum(one.alone for one in each),
            chance=max(one.chance for one in each),
            unseen=sum(one.unseen for one in each),
            share=1 - math.prod(1 - one.share for one in each),
            beyond=sum(one.beyond for one in each),
        )

    def groups(self) -> list[MixtureBlocks]:
        """Return the mixtures, blocks of one size with equally many components together."""
        sizes: dict[tuple[bool, int, int], list[int]] = {}
        for place, block in enumerate(self.blocks):
            count = len(block.mixture.log_weights)
            # To a power of two, so that groups are few.
            padded = 1 << (count - 1).bit_length()
            follows = self.given is not None and place > 0
            sizes.setdefault((follows, len(block.index), padded), []).append(place)
        return [self._group(places, key[0], key[2]) for key, places in sizes.items()]

    def _group(self, places: Sequence[int], follows: bool, count: int) -> MixtureBlocks:  # noqa: FBT001
        """Put blocks of one size together; components that are missing have no weight."""
        index, logits, locs, factors = [], [], [], []
        slopes: tuple[list[Tensor], list[Tensor]] = [], []
        for place in places:
            block = self.blocks[place]
            mixture = block.mixture
            num = len(mixture.log_weights)
            taken = torch.arange(count)
            taken = torch.where(taken < num, taken, 0)
            weights = mixture.log_weights[taken].clone()
            weights[num:] = math.log(1e-30)
            index.append(block.index)
            logits.append(weights)
            locs.append(mixture.locs[taken])
            factors.append(mixture.factors[taken])
            if follows and self.given is not None:
                slopes[0].append(self.given.logits[place - 1][taken])
                slopes[1].append(self.given.locs[place - 1][taken])
        made = MixtureBlocks(
            torch.stack(index), torch.stack(logits), torch.stack(locs), torch.stack(factors)
        )
        if not follows or self.given is None:
            return made
        given = GlobalSlopes(
            self.given.positions, self.given.centre, torch.stack(slopes[0]), torch.stack(slopes[1])
        )
        return replace(made, slopes=given)


def fit_mode_product(
    target: Target,
    found: GaussianFit,
    blocks: Sequence[Tensor],
    ends: Tensor,
    tops: Tensor,
    *,
    more: Callable[[int], Tensor],
    effort: float = 1.0,
    generator: torch.Generator,
) -> ModeProduct | None:
    r"""Fit a mixture of Gaussians to each of several independent blocks of latents.

    Where :math:`\log p(z) = \sum_b \ell_b(z_b)`, K modes of each of B blocks make :math:`K^B` modes
    of the whole, and B mixtures of K Gaussians hold them all. Every ascent of the whole is one of
    each block, so starts are shared; they go on, from a box around all that is known and from
    ``more``, as long as modes were met once alone or the estimate of unseen modes says that there
    are others. The mixtures are learnt from importance weights.

    Args:
        target: The density.
        found: A Gaussian, for units, and for blocks of one mode.
        blocks: Places of the latents of each block; one block of all latents where these are few
            and the modes many.
        ends: Where ascents ended ``(N, D)``.
        tops: One of them in each of the places known so far, the highest first.
        more: Gives ``n`` further starts.
        effort: Factor on numbers of steps.
        generator: Source of the noise.

    Returns:
        The product; None where a block of many latents has several modes, or where no more modes
        were found than one mixture of all latents holds as well.

    Cost:
        The gradients of 60 rows for each start, of a dozen for each end, and for each block some
        thousand rows without gradients for each component and round.

    Source: our own; the weights as in Cappé et al. 2008, doi 10.1007/s11222-008-9059-x (adaptive
    importance sampling in general mixture classes).
    """
    places = find_places(
        target, found, blocks, ends, tops, more=more, effort=effort, generator=generator
    )
    if places is None:
        return None
    several = sum(block.num_modes > 1 for block in places.blocks)
    if several < 2 and (len(blocks) > 1 or not several):
        return None
    if any(block.tops.numel() > BLOCK_MIXTURES.most_numbers for block in places.blocks):
        return None
    aim = min(BLOCK_MIXTURES.block_gap, BLOCK_MIXTURES.gap / len(blocks))
    reference, made, num_points = places.reference, [], 0
    for index, block in zip(blocks, places.blocks, strict=True):
        if target.budget.over():
            return None

        def log_density(z: Tensor, index: Tensor = index) -> Tensor:
            rows = reference.expand(len(z), -1).clone()
            rows[:, index] = z
            return heights(target, rows).double()

        one = _mixture_of(found, index, block, log_density, aim, generator)
        num_points += one.num_points
        made.append(BlockModes(index, one, block))
    return ModeProduct(tuple(made), places.num_starts, num_points, not target.budget.over())


def _mixture_of(
    found: GaussianFit,
    index: Tensor,
    block: BlockPlaces,
    log_density: Callable[[Tensor], Tensor],
    aim: float,
    generator: torch.Generator,
) -> LearntMixture:
    """Learn the mixture of a block; one of many latents and one mode stays the Gaussian's part."""
    if len(block.tops) > 1:
        return learn_mixture(
            log_density, block.log_evidence, Normals(block.tops, block.factors), aim, generator
        )
    start = Normals(found.loc[index][None], factor_of(found, index)[None])
    none = start.loc.new_zeros(1)
    if len(index) > BLOCK_MIXTURES.most_dim // 2:
        return LearntMixture(none, start.loc, start.factor, 0.0, 0)
    return learn_mixture(log_density, none, start, aim, generator)


def factor_of(found: GaussianFit, index: Tensor) -> Tensor:
    """Return the factor of the covariance of some coordinates of a Gaussian ``(d, d)``."""
    if found.factor.dim() == 1:
        return torch.diag(found.factor[index])
    rows = found.factor[index]
    return torch.linalg.cholesky(rows @ rows.mT)
