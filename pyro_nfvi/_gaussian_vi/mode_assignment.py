"""The assignment of least cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi.errors import ShapeError


def assign(cost: Tensor) -> Tensor:
    r"""Give each row a column of its own, so that the sum of costs is least.

    Args:
        cost: ``(N, K, K)``, finite.

    Returns:
        The column of each row ``(N, K)``.

    Cost:
        O(N K^3), in Python: for labels, of which there are few.

    Raises:
        ShapeError: The matrices are not square.

    Source: shortest augmenting paths, Jonker and Volgenant 1987, Computing 38.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.mode_assignment import assign
        >>> assign(torch.tensor([[[4.0, 1.0], [2.0, 3.0]]]))
        tensor([[1, 0]])
    """
    if cost.dim() != 3 or cost.shape[1] != cost.shape[2]:
        raise ShapeError(f"assign needs costs of shape (N, K, K); got {tuple(cost.shape)}.")
    rows = [_one(matrix) for matrix in cost.detach().double().cpu().tolist()]
    return torch.tensor(rows, dtype=torch.long).reshape(cost.shape[:2])


def _one(cost: list[list[float]]) -> list[int]:
    """Solve one problem; place 0 stands for "none" in what follows."""
    size = len(cost)
    row_price, column_price = [0.0] * (size + 1), [0.0] * (size + 1)
    row_of = [0] * (size + 1)
    for row in range(1, size + 1):
        row_of[0], column = row, 0
        least, before = [math.inf] * (size + 1), [0] * (size + 1)
        done = [False] * (size + 1)
        while row_of[column]:
            done[column] = True
            here, step, nearest = row_of[column], math.inf, 0
            for other in range(1, size + 1):
                if done[other]:
                    continue
                reduced = cost[here - 1][other - 1] - row_price[here] - column_price[other]
                if reduced < least[other]:
                    least[other], before[other] = reduced, column
                if least[other] < step:
                    step, nearest = least[other], other
            for other in range(size + 1):
                if done[other]:
                    row_price[row_of[other]] += step
                    column_price[other] -= step
                else:
                    least[other] -= step
            column = nearest
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    found = [0] * size
    for column in range(1, size + 1):
        found[row_of[column] - 1] = column - 1
    return found
