"""Blocks of latents that are independent of each other, found by evaluating the density."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.random_search import heights
from pyro_nfvi._gaussian_vi.recipe import INDEPENDENCE
from pyro_nfvi._gaussian_vi.target import Target


def independent_blocks(
    target: Target, points: Tensor, generator: torch.Generator
) -> list[Tensor] | None:
    r"""Find blocks whose densities multiply: :math:`\log p(z) = \sum_b \ell_b(z_b)`.

    Each latent is moved by itself, at several points, and the scores of the others watched: those
    that change belong to its block. An interaction may show elsewhere alone, so the blocks are
    then checked at many pairs of points, by what is 0 for a product whatever the points and the
    blocks S:

    .. math:: \log p(a_S, a_R) + \log p(b_S, b_R) - \log p(a_S, b_R) - \log p(b_S, a_R)

    Where it is not, up to rounding, the blocks that interact there are joined, and all are checked
    again. A pair of blocks is parted by half of the choices of S.

    Args:
        target: The density.
        points: Points of all kinds ``(N, D)``: ends of ascents, their starts, draws of the prior.
        generator: Chooses pairs and blocks.

    Returns:
        Places of the latents of each block, in order; None where there is one block alone, or where
        that cannot be told.

    Cost:
        6 D rows of the density with gradients and 1600 without.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.independent_blocks import independent_blocks
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> from pyro_nfvi._random import stream
        >>> def log_density(z):
        ...     return -(z[..., 0] * z[..., 2]).square() - z.square().square().sum(-1)
        >>> target = Target(log_density, torch.zeros(4))
        >>> noise = stream(0, "example")
        >>> points = torch.randn(20, 4, generator=noise)
        >>> [block.tolist() for block in independent_blocks(target, points, noise)]
        [[0, 2], [1], [3]]
    """
    dim = points.shape[-1]
    points = points[torch.isfinite(points).all(-1)]
    if dim < 2 or dim > INDEPENDENCE.most_dim or len(points) < 2:
        return None
    joined = interactions(target, points, generator)
    if joined is None or target.budget.over():
        return None
    for _ in range(INDEPENDENCE.rounds):
        blocks = connected_parts(joined)
        if len(blocks) < 2 or target.budget.over():
            return None
        odd = interacting_pairs(target, points, blocks, generator)
        if odd is None:
            return blocks
        more = _joined_at(target, *odd, blocks)
        if not bool((more & ~joined).any()):
            return None
        joined = joined | more
    return None


def _tolerance(target: Target) -> float:
    return INDEPENDENCE.double if target.dtype == torch.float64 else INDEPENDENCE.single


def interactions(target: Target, points: Tensor, generator: torch.Generator) -> Tensor | None:
    """Mark the pairs of latents of which one changes the other's score ``(D, D)``.

    Args:
        target: The density.
        points: Points ``(N, D)``.
        generator: Chooses among them.

    Returns:
        None where a latent could be moved nowhere.
    """
    dim = points.shape[-1]
    order = torch.randperm(len(points), generator=generator, device=generator.device)
    order = order.to(points.device)
    joined = torch.eye(dim, dtype=torch.bool)
    seen = torch.zeros(dim, dtype=torch.long)
    for turn in range(INDEPENDENCE.points):
        base, other = points[order[turn % len(points)]], points[order[(turn + 1) % len(points)]]
        moved = base.expand(dim, dim).clone()
        moved.diagonal().copy_(other)
        changed = other != base
        rows = torch.cat([base[None], moved])
        _, score, ok = target(rows)
        if target.budget.over() or not bool(ok[0]):
            continue
        known = (ok[1:] & changed).cpu()
        joined |= _changed(score[1:], score[0], _tolerance(target)).cpu() & known[:, None]
        seen += known
    return joined | joined.T if bool((seen > 0).all()) else None


def _changed(scores: Tensor, base: Tensor, tolerance: float) -> Tensor:
    """Mark the scores ``(N, D)`` that are not those of the base ``(D,)``, rounding apart."""
    size = torch.maximum(scores.abs().amax(0), base.abs())
    return (scores - base).abs() > tolerance * size


def connected_parts(joined: Tensor) -> list[Tensor]:
    """Return the connected parts of a graph ``(D, D)``, each in order."""
    reach = joined.float()
    for _ in range(max(1, len(joined)).bit_length()):
        reach = ((reach @ reach) > 0).float()
    first = reach.argmax(-1)  # the first latent that each is joined with
    return [(first == place).nonzero().squeeze(-1) for place in first.unique().tolist()]


def interacting_pairs(
    target: Target, points: Tensor, blocks: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Return pairs of points ``(n, D)`` that show blocks to interact; None if there are none."""
    num, dim = INDEPENDENCE.pairs, points.shape[-1]
    device = generator.device
    chosen = torch.randint(len(points), (2, num), generator=generator, device=device)
    a, b = (points[index.to(points.device)] for index in chosen)
    halves = torch.rand(num, len(blocks), generator=generator, device=device) < 0.5
    owner = torch.zeros(dim, dtype=torch.long)
    for place, block in enumerate(blocks):
        owner[block] = place
    mine = halves.to(points.device)[:, owner.to(points.device)]
    mixed, rest = torch.where(mine, a, b), torch.where(mine, b, a)
    four = heights(target, torch.cat([a, b, mixed, rest])).double().view(4, num)
    fine = torch.isfinite(four[:2]).all(0)
    size = four.abs().sum(0)
    apart = (four[0] + four[1] - four[2] - four[3]).abs()
    # A support that is no product leaves infinite numbers, which are no rounding.
    same = torch.isfinite(apart) & (apart <= 0.1 * _tolerance(target) * (1 + size))
    odd = fine & ~same
    found = odd.nonzero().squeeze(-1)[: INDEPENDENCE.examined]
    return None if not len(found) else (a[found], b[found])


def _joined_at(target: Target, a: Tensor, b: Tensor, blocks: list[Tensor]) -> Tensor:
    """Mark latents ``(D, D)`` whose blocks interact on the ways from points to others."""
    dim = a.shape[-1]
    joined = torch.eye(dim, dtype=torch.bool)
    for base, other in zip(torch.cat([a, b]), torch.cat([b, a])):
        if target.budget.over():
            break
        moved = base.expand(len(blocks), dim).clone()
        for place, block in enumerate(blocks):
            moved[place, block] = other[block]
        _, score, ok = target(torch.cat([base[None], moved]))
        changed = _changed(score[1:], score[0], _tolerance(target)) & ok[1:, None] & ok[0]
        for block, row in zip(blocks, changed.cpu()):
            joined[block[0], row] = True
            joined[block[:, None], block] = True
    return joined | joined.T
