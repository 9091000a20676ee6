"""A Gaussian over globals and the rows of plates, by variational Newton steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.recipe import BLOCK_ARROW
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.flows._block_arrow import (
    ArrowBlock,
    ArrowFactor,
    BlockArrow,
    across,
    along,
    multiply,
)

#: Blocks of a curvature of each row with itself ``(R, d, d)``, with each parent ``(R, d, d_p)``,
#: and the slope ``(R, d)``.
_LocalModel: TypeAlias = tuple[list[Tensor], list[list[Tensor]], list[Tensor]]
#: A block's name, the places of its rows ``(R, d)``, and the row ``(R,)`` of each parent, by name.
PlateRows: TypeAlias = tuple[str, Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class BlockArrowGaussian:
    r"""A Gaussian :math:`N(m, TT^\top)` whose precision is a block arrow.

    Attributes:
        loc: Mean m, ``(D,)``, float64.
        factor: T, float64.
        bound: Its evidence lower bound in nats; -inf where it could not be evaluated.
        bound_se: Standard error of that.
    """

    loc: Tensor
    factor: ArrowFactor
    bound: float = -math.inf
    bound_se: float = math.inf

    @property
    def gap(self) -> float:
        """Nats by which the bound is below the evidence: half the variance of the log weights."""
        return _gap(self, BLOCK_ARROW.judged_draws)

    def points(self, eps: Tensor) -> Tensor:
        """Map noise ``(*b, D)`` to draws."""
        return self.loc + self.factor.push(eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at points ``(*b, D)``, in nats."""
        return self.log_q(self.factor.solve(z - self.loc))

    def log_q(self, eps: Tensor) -> Tensor:
        """Log density of the draws of noise ``(*b, D)``, in nats."""
        return standard_normal_log_prob(eps).sum(-1) - self.factor.log_det

    def log_weights(self, target: Target, eps: Tensor) -> Tensor:
        """Log p - log q at the draws of noise ``(B, D)``, in nats; -inf where bad."""
        return target(self.points(eps))[0] - self.log_q(eps)


def fit_block_arrow(
    target: Target,
    starts: Sequence[TensorPair],
    arrow: BlockArrow,
    *,
    generator: torch.Generator | None = None,
) -> BlockArrowGaussian | None:
    r"""Fit a block-arrow Gaussian from several starts, and return the best by its bound.

    With :math:`z = m + Tx`, x standard normal, and :math:`F(x) = \log p(m + Tx)`, the best
    Gaussian of a quadratic F has, in these coordinates, precision
    :math:`A = -E[\nabla^2 F]` and mean :math:`A^{-1} E[\nabla F]`: a step is

    .. math:: A_\rho = (1-\rho) I + \rho A, \qquad
        m \leftarrow m + \rho\, T A_\rho^{-1} E[\nabla F], \qquad
        T T^\top \leftarrow T A_\rho^{-1} T^\top

    exact at once where p is Gaussian. A is as sparse as the arrow. Rows of a block do not
    interact, so that one product :math:`\nabla^2 F\,v`, with v one coordinate of all rows, shows
    that column of all their blocks: as many products as coordinates of the globals and of one row
    of each block. Products are differences of scores, of opposite sign at mirrored draws, where
    the error of third order cancels. :math:`\rho` is the best of a few by the bound on common
    noise; once none raises it, steps :math:`1/t` average over draws. Where curvature is
    negative, a step widens a direction by a limited factor.

    Args:
        target: The density.
        starts: Means and sds ``(D,)`` to start from.
        arrow: The structure; :func:`interacts` tells whether a density has it.
        generator: Source of the noise.

    Returns:
        None where no start can be evaluated.

    Cost:
        ``8 * (1 + arrow.num_probes)`` gradients for a step and some 100 for its size, at most 30
        steps for a start. O(D) otherwise, for given sizes of rows.

    Source: the Newton step of variational online Newton, Khan and Rue 2021, arXiv:2107.04562,
    section 4; structured precisions as in Tan and Nott 2018, arXiv:1605.05622.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.block_arrow import fit_block_arrow
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> from pyro_nfvi.flows._block_arrow import BlockArrow
        >>> def log_density(z):  # rows around a common mean
        ...     return -0.5 * z[:, 0] ** 2 - 2.0 * (z[:, 1:] - z[:, :1]).square().sum(-1)
        >>> one = torch.ones(301, dtype=torch.float64)
        >>> arrow = BlockArrow.of(torch.tensor([0]), torch.arange(1, 301)[:, None])
        >>> found = fit_block_arrow(Target(log_density, one), [(5 * one, 0.1 * one)], arrow)
        >>> bool(found.loc.abs().max() < 1e-6)
        True
        >>> [round(float(variance), 4) for variance in found.factor.variances[:2]]
        [1.0, 1.25]
    """
    given = BLOCK_ARROW
    reached: list[BlockArrowGaussian] = []
    for loc, scale in starts:
        if reached and target.budget.over():
            break
        first = BlockArrowGaussian(
            loc.double(), ArrowFactor.diagonal(arrow, scale.double().to(loc.device))
        )
        reached.append(
            _ascended(target, first, given.race_steps, generator, settle=given.settling_steps)
        )
    found = max(reached, key=lambda one: one.bound)
    if found.bound == -math.inf:
        return None
    if not target.budget.over():
        found = _ascended(target, found, given.last_steps, generator)
    found = judged(target, found, given.judged_draws, generator)
    if _gap(found, given.judged_draws) < given.exact or target.budget.over():
        return found
    settled = judged(target, _averaged(target, found, generator), given.judged_draws, generator)
    return settled if settled.bound > found.bound else found


def judged(
    target: Target, one: BlockArrowGaussian, num: int, generator: torch.Generator | None
) -> BlockArrowGaussian:
    """Return the same Gaussian with its bound on ``num`` draws."""
    num = target.affordable(num)
    # In parts of whole mirrored pairs: so many draws of many rows do not fit into memory at once.
    most = max(2, BLOCK_ARROW.numbers // len(one.loc) // 2 * 2)
    sizes = [min(most, num - start) for start in range(0, num, most)]
    parts = [one.log_weights(target, _noise(one.loc, size, generator)) for size in sizes]
    bound, error = _bound(torch.cat(parts))
    return BlockArrowGaussian(one.loc, one.factor, bound, error)


def interacts(
    target: Target,
    loc: Tensor,
    scale: Tensor,
    arrow: BlockArrow,
    *,
    generator: torch.Generator | None = None,
) -> set[tuple[int, int]] | None:
    """Find pairs of blocks whose rows interact though the structure says that they do not.

    Some rows of a block are moved, by the same amount and by random signs: scores of rows that do
    not depend on these must stay.

    Args:
        target: The density.
        loc: Where to look, ``(D,)``.
        scale: How far to move, ``(D,)``.
        arrow: The structure.
        generator: Source of the noise.

    Returns:
        Pairs ``(i, j)`` of indices, i the block that moved; i = j where rows of one block
        interact. None where the density cannot be evaluated.

    Cost:
        ``4 * 6 * len(arrow.blocks)`` gradients.
    """
    given = BLOCK_ARROW
    x = _noise(loc, given.checked_draws, generator)
    base = loc + scale * x
    _, before, ok = target(base)
    if not bool(ok.all()):
        return None
    unit = torch.finfo(target.dtype).eps
    found = set()
    for place, block in enumerate(arrow.blocks):
        for trial in range(given.checked_subsets):
            moved = _some_rows(block, trial, loc, generator)
            step = torch.zeros_like(loc)
            size = torch.ones_like(moved)
            if trial % 2:
                size = torch.randn(
                    moved.shape, generator=generator, dtype=loc.dtype, device=loc.device
                )
            step[block.positions] = (moved * size).expand(block.positions.shape).to(loc)
            _, after, good = target(base + given.difference * scale * step)
            if not bool(good.any()):
                return None
            change = (scale * (after - before))[good].abs()
            floor = given.rounding * unit * (scale * before).abs()[good].amax(0)
            own = arrow.split(change)[place][:, moved[:, 0] != 0]
            limit = floor + given.interaction * own.median() if own.numel() else floor
            odd = arrow.split((change > limit).any(0))
            for other, seen in enumerate(_free_rows(arrow, place, moved[:, 0] != 0)):
                if seen is not None and bool(odd[other][seen].any()):
                    found.add((place, other))
    return found


def _some_rows(
    block: ArrowBlock, trial: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw half of a block's rows, as a mask ``(R, 1)`` of zeros and ones."""
    if block.rows == 1:
        return torch.ones(1, 1, dtype=like.dtype, device=like.device)
    order = torch.randperm(block.rows, generator=generator, device=like.device)
    mask = torch.zeros(block.rows, 1, dtype=like.dtype, device=like.device)
    mask[order[: block.rows // 2]] = 1.0
    return mask


def _free_rows(arrow: BlockArrow, place: int, moved: Tensor) -> list[Tensor | None]:
    """Rows of each block that must not notice; None for blocks all of whose rows may."""
    out: list[Tensor | None] = []
    above = {index for index, _ in arrow.blocks[place].parents}
    for other, block in enumerate(arrow.blocks):
        if other in above:
            out.append(None)
        elif other == place:
            out.append(~moved)
        else:
            mine = dict(block.parents)
            everyone = torch.ones(block.rows, dtype=torch.bool, device=moved.device)
            out.append(~moved[mine[place]] if place in mine else everyone)
    return out


# ----------------------------------------------------------------------------------- steps


def _ascended(
    target: Target,
    now: BlockArrowGaussian,
    most: int,
    generator: torch.Generator | None,
    *,
    settle: int = 0,
) -> BlockArrowGaussian:
    """Newton steps of the best size, for as long as the bound rises; the first of rows alone."""
    given = BLOCK_ARROW
    flat, retreats, size, stride = 0, 0, 1.0, 1.0
    for step in range(most):
        if step and target.budget.over():
            break
        noise = _noise(now.loc, given.compared_draws, generator)
        before = now.log_weights(target, noise)
        now = BlockArrowGaussian(now.loc, now.factor, *_bound(before))
        if _gap(now, len(before)) < given.exact:
            break
        settling = step < settle and any(block.parents for block in now.factor.arrow.blocks)
        seen = _local_model(target, now, given.draws, generator, rows_only=settling)
        if seen is None or now.bound == -math.inf:
            # Too wide a start: the density cannot be evaluated at half of the draws.
            retreats += 1
            if retreats > given.retreats:
                break
            now = BlockArrowGaussian(now.loc, _narrower(now.factor))
            continue
        found = _best_size(target, now, seen, noise, size, rows_only=settling)
        if found is None or not found[1].bound > now.bound:
            flat += not settling
            if flat >= given.patience:
                break
            continue
        last, gain, after = now, found[1].bound - now.bound, found[2]
        size, now = found[:2]
        if settling or _gap(now, len(noise)) < given.exact:
            continue
        ahead = _leapt(target, last, now, stride, noise, generator)
        stride = max(0.5 * stride, 1.0) if ahead is None else min(2 * stride, given.most_stride)
        if ahead is not None:
            gain, now = gain + ahead.bound - now.bound, ahead
        apart = (after - before)[torch.isfinite(after - before)]
        noise_of_gain = float(apart.std()) / math.sqrt(max(1, len(apart)))
        flat = flat + 1 if size == 1.0 and gain < given.least_gain + noise_of_gain else 0
        if flat >= given.patience:
            break
    return now


def _leapt(
    target: Target,
    last: BlockArrowGaussian,
    now: BlockArrowGaussian,
    stride: float,
    noise: Tensor,
    generator: torch.Generator | None,
) -> BlockArrowGaussian | None:
    """Go on with the globals as far again as the last step went, and let the rows follow.

    The sds of rows and a scale of the globals that they are drawn from change in turn, as in the
    EM iteration, which creeps where the data say little of a row.

    Returns:
        None where the bound on the same noise is not higher.
    """
    arrow = now.factor.arrow
    moved = [
        stride * part if not block.parents else torch.zeros_like(part)
        for block, part in zip(arrow.blocks, arrow.split(now.loc - last.loc))
    ]
    inner = arrow.split(now.factor.solve(arrow.join(moved)))
    inner = [
        part if not block.parents else torch.zeros_like(part)
        for block, part in zip(arrow.blocks, inner)
    ]
    ahead = BlockArrowGaussian(now.loc + now.factor.push(arrow.join(inner)), now.factor)
    seen = _local_model(target, ahead, BLOCK_ARROW.draws, generator, rows_only=True)
    if seen is None:
        return None
    ahead = _stepped(ahead, *seen, 1.0, rows_only=True)
    bound, error = _bound(ahead.log_weights(target, noise))
    if not bound > now.bound:
        return None
    return BlockArrowGaussian(ahead.loc, ahead.factor, bound, error)


def _best_size(
    target: Target,
    now: BlockArrowGaussian,
    seen: _LocalModel,
    noise: Tensor,
    last: float,
    *,
    rows_only: bool,
) -> tuple[float, BlockArrowGaussian, Tensor] | None:
    """Take the best of some sizes of a step, smaller ones for as long as these are better.

    Returns:
        The size, the Gaussian with its bound on the noise, and its log weights; None where none
        can be evaluated.
    """
    given = BLOCK_ARROW
    best: tuple[float, BlockArrowGaussian, Tensor] | None = None
    size = min(1.0, last / given.shrinkage**2)
    while size >= given.least_size:
        moved = _stepped(now, *seen, size, rows_only=rows_only)
        log_w = moved.log_weights(target, noise)
        bound, error = _bound(log_w)
        if best is not None and bound <= best[1].bound:
            break
        if bound > -math.inf:
            moved = BlockArrowGaussian(moved.loc, moved.factor, bound, error)
            best = size, moved, log_w
        size *= given.shrinkage
    return best


def _averaged(
    target: Target, now: BlockArrowGaussian, generator: torch.Generator | None
) -> BlockArrowGaussian:
    """Steps of sizes 1/t, which average curvature and slope over draws."""
    given = BLOCK_ARROW
    for step in range(given.averaged_steps):
        if target.budget.over():
            break
        seen = _local_model(target, now, given.averaged_draws, generator)
        if seen is None:
            break
        now = _stepped(now, *seen, 1 / (step + given.averaged_from))
    return now


def _gap(one: BlockArrowGaussian, num: int) -> float:
    """Nats between evidence and bound, half the variance of ``num`` log weights."""
    return 0.5 * num * one.bound_se**2


def _narrower(factor: ArrowFactor) -> ArrowFactor:
    trils = tuple(BLOCK_ARROW.retreat * tril for tril in factor.trils)
    return ArrowFactor(factor.arrow, trils, factor.weights)


def _noise(like: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise in mirrored pairs ``(num, D)``."""
    half = torch.randn(
        (num + 1) // 2, len(like), generator=generator, dtype=like.dtype, device=like.device
    )
    return torch.cat([half, -half])[:num]


def _bound(log_w: Tensor) -> tuple[float, float]:
    """Mean and standard error; -inf if more than one draw in a hundred cannot be scored."""
    ok = torch.isfinite(log_w)
    if int((~ok).sum()) * 100 > len(log_w) or int(ok.sum()) < 2:
        return -math.inf, math.inf
    good = log_w[ok]
    return float(good.mean()), float(good.std()) / math.sqrt(len(good))


def _local_model(
    target: Target,
    now: BlockArrowGaussian,
    num: int,
    generator: torch.Generator | None,
    *,
    rows_only: bool = False,
) -> _LocalModel | None:
    """Mean negative curvature and slope of F, block by block; with or without the globals'.

    Returns:
        None where less than half of the draws can be used.
    """
    arrow, factor, half = now.factor.arrow, now.factor, num // 2
    x = _noise(now.loc, num, generator)
    _, score, ok = target(now.points(x))
    pairs = ok[:half] & ok[half:]
    if 2 * int(pairs.sum()) < half:
        return None
    slope = factor.pull(score)
    step = torch.full((num, 1), BLOCK_ARROW.difference, dtype=x.dtype, device=x.device)
    step[half:] *= -1.0
    diagonal = [now.loc.new_zeros(b.rows, b.size, b.size) for b in arrow.blocks]
    beside = [
        [now.loc.new_zeros(b.rows, b.size, arrow.blocks[i].size) for i, _ in b.parents]
        for b in arrow.blocks
    ]
    probes = [
        (place, k)
        for place, one in enumerate(arrow.blocks)
        for k in range(one.size)
        if one.parents or not rows_only
    ]
    at_once = max(1, BLOCK_ARROW.rows // num)
    for begin in range(0, len(probes), at_once):
        some = probes[begin : begin + at_once]
        moved = x.expand(len(some), *x.shape).clone()
        for row, (place, column) in zip(moved, some):
            row[:, arrow.blocks[place].positions[:, column]] += step
        _, there, good = target(now.points(moved))
        used = pairs & good[:, :half] & good[:, half:]
        if bool((2 * used.sum(-1) < half).any()):
            return None
        change = (slope - factor.pull(there)) / step
        change = change[:, :half] + change[:, half:]
        weight = used.to(x) / (2 * used.sum(-1, keepdim=True))
        for (place, column), mean in zip(some, (weight.unsqueeze(1) @ change).squeeze(1)):
            parts = arrow.split(mean)
            diagonal[place][:, :, column] = parts[place]
            for child, block in enumerate(arrow.blocks):
                for at, (index, _) in enumerate(block.parents):
                    if index == place:
                        beside[child][at][:, :, column] = parts[child]
    diagonal = [0.5 * (block + block.mT) for block in diagonal]
    mean = (slope[:half] + slope[half:])[pairs].mean(0) / 2
    return diagonal, beside, arrow.split(mean)


def _stepped(
    now: BlockArrowGaussian,
    diagonal: list[Tensor],
    beside: list[list[Tensor]],
    slope: list[Tensor],
    rho: float,
    *,
    rows_only: bool = False,
) -> BlockArrowGaussian:
    """One Newton step of size rho, by elimination of children before parents.

    With ``rows_only`` the blocks without parents stay, and the others follow them.
    """
    arrow, old = now.factor.arrow, now.factor
    eyes = [torch.eye(block.shape[-1]).to(block) for block in diagonal]
    own = [(1 - rho) * eye + rho * block for eye, block in zip(eyes, diagonal)]
    off = [[rho * block for block in blocks] for blocks in beside]
    right = list(slope)
    back: list[Tensor] = [own[0]] * len(own)  # shift of each row given its parents
    factors: list[Tensor] = [own[0]] * len(own)
    gains: list[list[Tensor]] = [[] for _ in own]
    for place in reversed(range(len(own))):
        block = arrow.blocks[place]
        if rows_only and not block.parents:
            factors[place], back[place] = eyes[place].expand_as(own[place]), 0 * right[place]
            continue
        inverse, factors[place] = _inverse(own[place])
        back[place] = multiply(inverse, right[place])
        gains[place] = [-(inverse @ one) for one in off[place]]
        for at, (index, rows) in enumerate(block.parents):
            right[index] = right[index] - across(off[place][at], back[place], rows, right[index])
            into = off[place][at].mT @ gains[place][at]
            own[index] = own[index].index_add(0, rows, into)
            known = [i for i, _ in arrow.blocks[index].parents]
            for before, (above, _) in enumerate(block.parents[:at]):
                into = off[place][at].mT @ gains[place][before]
                spot = known.index(above)
                off[index][spot] = off[index][spot].index_add(0, rows, into)
    trils, weights, shift = [], [], list[Tensor]()
    for place, block in enumerate(arrow.blocks):
        delta = back[place]
        new = list(old.weights[place])
        names = [index for index, _ in block.parents]
        for at, (index, rows) in enumerate(block.parents):
            delta = delta + along(gains[place][at], shift[index], rows)
            # L K (L_p)^-1, and what of it belongs to the parent's own parents.
            turned = old.trils[place] @ gains[place][at]
            turned = torch.linalg.solve_triangular(
                old.trils[index][rows], turned, upper=False, left=False
            )
            new[at] = new[at] + turned
            inner = [i for i, _ in arrow.blocks[index].parents]
            for spot, above in enumerate(inner):
                to = names.index(above)
                new[to] = new[to] - turned @ old.weights[index][spot][rows]
        shift.append(delta)
        weights.append(tuple(new))
        trils.append(old.trils[place] @ factors[place])
    moved = arrow.join(shift)
    loc = now.loc + old.push(rho * moved)
    return BlockArrowGaussian(loc, ArrowFactor(arrow, tuple(trils), tuple(weights)))


def _inverse(matrix: Tensor) -> TensorPair:
    """Invert symmetric matrices ``(R, d, d)``, and factor the inverse by a lower triangle.

    Eigenvalues are raised to the smallest that a step allows.
    """
    least = BLOCK_ARROW.least_curvature
    if matrix.shape[-1] == 1:
        inverse = 1 / matrix.clamp_min(least)
        return inverse, inverse.sqrt()
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix))
    values = values.clamp_min(least)
    raised = (vectors * values.unsqueeze(-2)) @ vectors.mT
    # P = U U^T with U upper triangular: the inverse is U^-T U^-1, whose first factor is lower.
    upper = torch.linalg.cholesky(raised.flip(-2, -1)).flip(-2, -1)
    eye = torch.eye(matrix.shape[-1]).to(matrix).expand_as(matrix)
    lower = torch.linalg.solve_triangular(upper, eye, upper=True).mT
    return (vectors / values.unsqueeze(-2)) @ vectors.mT, lower


# --------------------------------------------------------------------------------- structure


def find_arrow(
    target: Target,
    loc: Tensor,
    scale: Tensor,
    blocks: Sequence[PlateRows],
    *,
    generator: torch.Generator | None = None,
) -> BlockArrow | None:
    """Find the block arrow that a density has, from the rows of its plates.

    Blocks whose rows interact, with each other or with rows of a block that is no parent, and the
    smaller one of two crossed plates, join the globals, as long as these are few: the items of a
    test, beside its many persons.

    Args:
        target: The density.
        loc: Where interactions are looked for, ``(D,)``.
        scale: How far points are moved for that, ``(D,)``.
        blocks: Rows of plates, parents first, each with the rows of its parents by name; those
            that stand in no plate have one row.
        generator: Source of the noise.

    Returns:
        None where the rest are too many: the density has no such structure.

    Cost:
        A few hundred gradients.
    """
    given = BLOCK_ARROW
    sizes = {name: positions.numel() for name, positions, _ in blocks}
    merged = {name for name, positions, _ in blocks if len(positions) == 1}
    while True:
        if sum(sizes[name] for name in merged) > given.most_globals or len(merged) == len(sizes):
            return None
        arrow, names, crossed = _merged(blocks, merged)
        if arrow is None:
            merged.add(min(crossed, key=sizes.__getitem__))
            continue
        found = interacts(target, loc, scale, arrow, generator=generator)
        if found is None:
            return None
        if not found:
            return arrow
        for pair in found:
            inner = [names[index] for index in pair if names[index]]
            merged.add(min(inner, key=sizes.__getitem__))


def _merged(
    blocks: Sequence[PlateRows], merged: Collection[str]
) -> tuple[BlockArrow | None, list[str], list[str]]:
    """Make a structure with some blocks among the globals.

    Returns:
        The structure, the names of its blocks (none for the globals), and no names; or None, and
        the names of parents that are no chain.
    """
    inside = [positions.reshape(-1) for name, positions, _ in blocks if name in merged]
    made, names = list[ArrowBlock](), list[str]()
    if inside:
        made.append(ArrowBlock(torch.cat(inside)[None]))
        names.append("")
    for name, positions, above in blocks:
        if name in merged:
            continue
        parents = [(names.index(one), rows) for one, rows in above.items() if one not in merged]
        parents.sort(key=lambda pair: pair[0])
        mine = [names[index] for index, _ in parents]
        for before, after in itertools.pairwise(mine):
            up = dict(next(one[2] for one in blocks if one[0] == after))
            if before not in up:
                return None, [], [before, after]
        if inside:
            parents.insert(0, (0, torch.zeros(len(positions), dtype=torch.long)))
        made.append(ArrowBlock(positions, tuple(parents)))
        names.append(name)
    return BlockArrow.tree([_on(block, made[0].positions.device) for block in made]), names, []


def _on(block: ArrowBlock, device: torch.device) -> ArrowBlock:
    return ArrowBlock(
        block.positions.to(device), tuple((i, rows.to(device)) for i, rows in block.parents)
    )
