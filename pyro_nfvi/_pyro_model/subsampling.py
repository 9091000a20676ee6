"""Mini-batches for many steps at once, drawn without replacement; and those that hold all data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.recipe import MODELS


def draw_without_replacement(
    num: int,
    size: int,
    count: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw ``num`` ordered subsets of ``count`` out of ``size``, uniformly: ``(num, count)``.

    A row is the first ``count`` different numbers of a sequence of independent draws. Whether a
    sequence was long enough says nothing about which numbers it holds, so that drawing too short
    ones again leaves the rows uniform.

    Cost:
        O(count) per row, or O(size) where the subset is a large part of the whole.

    Example:
        >>> rows = draw_without_replacement(5, 1000, 32)
        >>> rows.shape, all(len(set(row.tolist())) == 32 for row in rows)
        (torch.Size([5, 32]), True)
    """
    if count > MODELS.shuffled_share * size:
        rows = [torch.randperm(size, generator=generator, device=device) for _ in range(num)]
        return torch.stack([row[:count] for row in rows])
    # Repeats to expect among the draws, with much to spare.
    spare = count * count / size
    length = count + int(spare + 6 * spare**0.5) + 8
    parts, missing = [], num
    while missing:
        drawn = torch.randint(size, (missing, length), generator=generator, device=device)
        ordered, order = drawn.sort(dim=1, stable=True)
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        new = ~repeated
        enough = new.sum(1) >= count
        keep = (new & (new.cumsum(1) <= count))[enough]
        parts.append(drawn[enough][keep].reshape(-1, count))
        missing -= int(enough.sum())
    return torch.cat(parts)


def cover(size: int, count: int) -> tuple[Tensor, Tensor]:
    r"""Batches of ``count`` with weights whose sum counts each of ``size`` data once.

    A log joint with scaled mini-batches, averaged over these with the weights, is that of all data.
    Where ``count`` does not divide ``size``, the rest and one batch more form a ring, which batches
    go round until each of its data was met equally often.

    Args:
        size: Number of data.
        count: Size of a batch.

    Returns:
        Indices ``(K, count)`` and weights ``(K,)``, float64, which sum to one.

    Cost:
        K is ``size / count``, and up to ``2 count`` more where that is no whole number.

    Example:
        >>> index, weights = cover(10, 4)
        >>> (index, weights.tolist())
        (tensor([[0, 1, 2, 3],
                [4, 5, 6, 7],
                [8, 9, 4, 5],
                [6, 7, 8, 9]]), [0.4, 0.2, 0.2, 0.2])
    """
    rest = size % count
    ring = rest + count if rest else 0
    whole = torch.arange(size - ring).reshape(-1, count)
    if not ring:
        return whole, torch.full((len(whole),), count / size, dtype=torch.float64)
    turns = count // math.gcd(ring, count)
    around = torch.arange(turns * ring).remainder(ring).reshape(-1, count) + (size - ring)
    weights = [torch.ones(len(whole)).double(), torch.ones(len(around)).double() / turns]
    return torch.cat([whole, around]), torch.cat(weights) * count / size
