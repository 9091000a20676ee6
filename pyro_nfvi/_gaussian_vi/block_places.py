"""Modes of independent blocks of latents, from ascents that all blocks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_ascent import ascend
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.random_search import heights
from pyro_nfvi._gaussian_vi.recipe import BLOCK_MIXTURES, MODE_SEARCH, PATHS
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._gaussian_vi.unseen_starts import UnseenStarts, unseen_starts


@dataclass(frozen=True, eq=False)
class BlockPlaces:
    """The modes of a block, and the tops of the density in them.

    A ridge has many tops, no valley between neighbours: they are one mode.

    Attributes:
        tops: The tops ``(T, d)``.
        factors: Factors of the inverses of minus the Hessians there ``(T, d, d)``.
        log_evidence: Their log evidences by Laplace's method ``(T,)``, in nats.
        mode: The mode of each ``(T,)``, from 0 on.
        hits: Starts that ended in each mode ``(M,)``.
        unseen: Estimate of modes that no start has met.
    """

    tops: Tensor
    factors: Tensor
    log_evidence: Tensor
    mode: Tensor
    hits: Tensor
    unseen: UnseenStarts

    @property
    def num_modes(self) -> int:
        """M, the number of modes."""
        return len(self.hits)


@dataclass(frozen=True, eq=False)
class Places:
    """The modes of all blocks, and the point that stands for the other blocks of each."""

    blocks: tuple[BlockPlaces, ...]
    reference: Tensor
    num_starts: int


def find_places(
    target: Target,
    found: GaussianFit,
    blocks: Sequence[Tensor],
    ends: Tensor,
    tops: Tensor,
    *,
    more: Callable[[int], Tensor],
    effort: float,
    generator: torch.Generator,
) -> Places | None:
    """Find the modes of each block; see :func:`fit_mode_product`.

    Returns:
        None where a block of more latents than a mixture is learnt for seems to have several modes,
        or where there was no time.
    """
    given, reference = BLOCK_MIXTURES, tops[0]
    sds = found.scale.to(reference)
    frame = Normals(found.loc[None], sds[None])
    small = [block for block in blocks if len(block) <= given.most_dim]
    for block in blocks:
        apart = (tops[:, block] - reference[block]).abs() / sds[block]
        if len(block) > given.most_dim and bool((apart > given.widest).any()):
            return None
    known = [_Known.none(target, reference, block, sds) for block in small]
    count, before = 0, 0
    steps = max(1, round(MODE_SEARCH.ascent_steps * effort))
    for turn in range(given.rounds):
        ends = ends[torch.isfinite(ends).all(-1)]
        count += len(ends)
        polished = _polish(target, ends, small, sds)
        if polished is None:
            return None
        for one in known:
            one.add(polished)
        if target.budget.over() or turn == given.rounds - 1:
            break
        several = sum(block.num_modes > 1 for block in known)
        if turn == 0 and (several < 1 or (several < 2 and len(blocks) > 1)):
            break
        # Starts of the box are of another kind than the first: they are tried in any case, and
        # again as long as they find something.
        number = sum(block.num_modes for block in known)
        if turn and number == before and not any(block.wants_more() for block in known):
            break
        before = number
        starts = _starts(known, reference, sds, more, generator)
        ends, _ = ascend(target, frame, starts, steps)
    named = {id(block): one.places() for block, one in zip(small, known, strict=True)}
    each = [named.get(id(block)) or _one_mode(block, reference, sds, count) for block in blocks]
    return Places(tuple(each), reference, count)


def _one_mode(block: Tensor, reference: Tensor, sds: Tensor, count: int) -> BlockPlaces:
    hits = torch.tensor([count])
    none = reference.new_zeros(1)
    factor = torch.diag(sds[block])[None]
    mode, unseen = torch.zeros(1, dtype=torch.long), unseen_starts(hits, none)
    return BlockPlaces(reference[block][None], factor, none, mode, hits, unseen)


@dataclass(frozen=True, eq=False)
class _Polished:
    """Ends of ascents at their tops, with the curvature of each block there."""

    ends: Tensor
    precisions: dict[int, Tensor]  # (N, d, d) of each block, by its first latent
    at_top: dict[int, Tensor]  # (N,)


def _polish(
    target: Target, ends: Tensor, blocks: Sequence[Tensor], sds: Tensor
) -> _Polished | None:
    """Move ends to the tops by Newton's method, in all blocks side by side.

    The i-th latents of all blocks move together in a difference of scores, since a block's score
    does not depend on the others.
    """
    given = BLOCK_MIXTURES
    z, widest = ends, max(len(block) for block in blocks)
    _, score, _ = target(z)
    for turn in range(given.newton_steps + 1):
        columns = []
        for i in range(widest):
            step = torch.zeros_like(sds)
            for block in blocks:
                if i < len(block):
                    step[block[i]] = given.difference * sds[block[i]]
            up, down = target(z + step)[1], target(z - step)[1]
            columns.append((up - down) / 2)
        if target.budget.over():
            return None
        precisions, at_top, tried = {}, {}, z.clone()
        for block in blocks:
            d = len(block)
            step = given.difference * sds[block]
            hessian = torch.stack([columns[i][:, block] / step[i] for i in range(d)], -1)
            precision, move, decrement = _newton(hessian, score[:, block], sds[block])
            precisions[int(block[0])] = precision
            at_top[int(block[0])] = decrement < given.decrement
            tried[:, block] += move
        if turn == given.newton_steps:
            return _Polished(z, precisions, at_top)
        new, ok = target(tried)[1:]
        for block in blocks:
            before = (score[:, block] * sds[block]).norm(dim=-1)
            closer = ok & ((new[:, block] * sds[block]).norm(dim=-1) < before)
            z = z.clone()
            z[:, block] = torch.where(closer[:, None], tried[:, block], z[:, block])
        score = target(z)[1]
    raise AssertionError


def _newton(hessian: Tensor, score: Tensor, sds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return precisions ``(N, d, d)``, steps ``(N, d)`` and Newton decrements ``(N,)``."""
    scaled = -(hessian + hessian.mT) / 2 * sds[:, None] * sds
    values, vectors = torch.linalg.eigh(scaled.nan_to_num(0.0))
    # No wider than the widest start, whatever the curvature says.
    values = values.abs().clamp_min(BLOCK_MIXTURES.widest**-2)
    along = (vectors.mT @ (score * sds).unsqueeze(-1)).squeeze(-1)
    move = (vectors @ (along / values).unsqueeze(-1)).squeeze(-1)
    length = move.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    move = move * (BLOCK_MIXTURES.longest_step / length).clamp_max(1.0)
    precision = vectors @ (values.unsqueeze(-1) * vectors.mT) / (sds[:, None] * sds)
    return precision, move * sds, (along.square() / values).sum(-1) / 2


class _Known:
    """The modes of one block that are known so far."""

    def __init__(self, target: Target, reference: Tensor, block: Tensor, sds: Tensor) -> None:
        self.target, self.reference, self.block, self.sds = target, reference, block, sds
        self.tops, self.precisions = reference[block][:0].view(0, len(block)), sds.new_zeros(0)
        self.hits = torch.zeros(0, dtype=torch.long)  # of each top
        self.mode = torch.zeros(0, dtype=torch.long)
        self.log_evidence = sds.new_zeros(0)
        self.beyond = 0

    @classmethod
    def none(cls, target: Target, reference: Tensor, block: Tensor, sds: Tensor) -> _Known:
        """Return a block without modes yet."""
        return cls(target, reference, block, sds)

    def add(self, polished: _Polished) -> None:
        """Count ends to the modes that are near; each of the others is a mode of its own."""
        given, name = BLOCK_MIXTURES, int(self.block[0])
        z, precisions = polished.ends[:, self.block], polished.precisions[name]
        fine = polished.at_top[name]
        if not len(self.tops) and not bool(fine.any()):
            fine = torch.ones_like(fine)
        z, precisions = z[fine], precisions[fine]
        label = self._nearest(z)
        while bool((label < 0).any()):
            if len(self.tops) >= given.most_modes:
                self.beyond += int((label < 0).sum())
                break
            new = int((label < 0).nonzero()[0])
            self.tops = torch.cat([self.tops, z[new][None]])
            self.precisions = torch.cat([self.precisions.view(-1, *precisions.shape[1:]),
                                         precisions[new][None]])  # fmt: skip
            label = torch.where(label < 0, self._nearest(z), label)
        hits = torch.bincount(label[label >= 0].cpu(), minlength=len(self.tops))
        self.hits = torch.nn.functional.pad(self.hits, (0, len(self.tops) - len(self.hits))) + hits
        self.log_evidence = self._evidence()
        self._group(len(self.mode))

    @property
    def num_modes(self) -> int:
        """Number of modes."""
        return int(self.mode.max()) + 1 if len(self.mode) else 0

    def _group(self, before: int) -> None:
        """Give tops from ``before`` on to the modes of neighbours without a valley between."""
        names: list[int] = self.mode.tolist()
        fresh = max(names, default=-1) + 1
        names += list(range(fresh, fresh + len(self.tops) - before))
        pairs: list[tuple[int, int]] = []
        for new in range(before, len(self.tops)):
            away = self.tops[:new] - self.tops[new]
            distance = (away / self.sds[self.block]).square().sum(-1)
            near = distance.argsort()[: BLOCK_MIXTURES.neighbours]
            pairs += [(new, one) for one in near.tolist()]
        if pairs:
            index = torch.tensor(pairs)
            for (new, one), apart in zip(pairs, self._valleys(index).tolist(), strict=True):
                if not apart and names[new] != names[one]:
                    old, kept = names[new], names[one]
                    names = [kept if name == old else name for name in names]
        self.mode = torch.tensor(names, dtype=torch.long).unique(return_inverse=True)[1]

    def _valleys(self, pairs: Tensor) -> Tensor:
        """Tell of pairs of tops ``(P, 2)`` whether a valley lies on the straight way ``(P,)``."""
        ends = self.tops[pairs.to(self.tops.device)]
        share = torch.linspace(0, 1, PATHS.points, dtype=ends.dtype, device=ends.device)
        ways = torch.lerp(ends[:, :1], ends[:, 1:], share[:, None])
        rows = self.reference.expand(ways.shape[0] * len(share), -1).clone()
        rows[:, self.block] = ways.flatten(0, 1)
        height = heights(self.target, rows).double().view(-1, len(share))
        return height.amin(-1) < torch.minimum(height[:, 0], height[:, -1]) - BLOCK_MIXTURES.valley

    def _nearest(self, z: Tensor) -> Tensor:
        """Return the mode that is near each of the points ``(N, d)``; -1 for none."""
        if not len(self.tops):
            return torch.full((len(z),), -1, dtype=torch.long, device=z.device)
        away = z.unsqueeze(1) - self.tops
        distance = torch.einsum("nki,kij,nkj->nk", away, self.precisions, away)
        nearest, mode = distance.min(-1)
        return torch.where(nearest < BLOCK_MIXTURES.nearness**2, mode, -1)

    def _evidence(self) -> Tensor:
        rows = self.reference.expand(len(self.tops), -1).clone()
        rows[:, self.block] = self.tops
        height = heights(self.target, rows).double()
        log_det = torch.linalg.slogdet(self.precisions)[1]
        return height + 0.5 * (len(self.block) * math.log(2 * math.pi) - log_det)

    @property
    def unseen(self) -> UnseenStarts:
        """Estimate of modes that no start has met."""
        return unseen_starts(*self._by_mode(), self.beyond)

    def _by_mode(self) -> tuple[Tensor, Tensor]:
        """Return hits and log evidences of the modes ``(M,)``, sums over their tops."""
        inside = self.mode == torch.arange(self.num_modes).unsqueeze(-1)
        log_evidence = self.log_evidence.cpu().expand(inside.shape).masked_fill(~inside, -torch.inf)
        return (inside * self.hits).sum(-1), torch.logsumexp(log_evidence, -1)

    def wants_more(self) -> bool:
        """Tell whether more starts are likely to meet further modes that matter."""
        if self.num_modes < 2:
            return False
        hits, log_evidence = self._by_mode()
        alone = torch.softmax(log_evidence, 0)[hits == 1]
        if bool((alone > BLOCK_MIXTURES.light).any()):
            return True
        return self.unseen.share > BLOCK_MIXTURES.most_unseen

    def places(self) -> BlockPlaces:
        """Return what is known."""
        covariances = torch.linalg.inv(self.precisions)
        factors = torch.linalg.cholesky((covariances + covariances.mT) / 2)
        return BlockPlaces(
            self.tops, factors, self.log_evidence, self.mode, self._by_mode()[0], self.unseen
        )


def _starts(
    known: Sequence[_Known],
    reference: Tensor,
    sds: Tensor,
    more: Callable[[int], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Return starts: a Latin hypercube over a box around all modes of each block, and others."""
    given = BLOCK_MIXTURES
    num = given.starts
    others = more(num // 8).to(reference)
    rows = reference.expand(num - len(others), -1).clone()
    for one in known:
        low, high = one.tops.amin(0), one.tops.amax(0)
        middle = (low + high) / 2
        half = given.box * (high - low) / 2 + 3 * sds[one.block]
        order = torch.rand(rows.shape[0], len(one.block), generator=generator,
                           dtype=rows.dtype, device=rows.device).argsort(0)  # fmt: skip
        jitter = torch.rand(order.shape, generator=generator, dtype=rows.dtype, device=rows.device)
        unit = 2 * (order + jitter) / len(rows) - 1
        rows[:, one.block] = middle + half * unit
    return torch.cat([rows, others])
