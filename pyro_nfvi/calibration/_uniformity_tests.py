"""Tests of uniformity for simulation-based calibration: symmetry (bias) and width."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi.errors import ShapeError, WeightError


def bias_test(p: Tensor) -> tuple[Tensor, Tensor]:
    r"""Test whether probabilities lie symmetrically about 1/2.

    With :math:`p_i = \Pr_q(\theta < \theta_i)` for a truth :math:`\theta_i` and the fit q to its
    data, an unbiased q gives p and 1 - p one distribution. The statistic is the
    Kolmogorov-Smirnov distance of the two,

    .. math:: D = \sup_x |F_p(x) - F_{1-p}(x)|.

    The two samples are mirror images of each other, so the table for independent samples does not
    hold (its 5 % are 11 % here). Ordered by :math:`|p_i - 1/2|`, the largest first, the signs of
    :math:`p_i - 1/2` are a fair random walk, and N D is how far it gets from 0: the p-value is
    exact, for every N.

    Args:
        p: Probabilities in (0, 1), ``(N, *shape)``, without ties in \|p - 1/2\|.

    Returns:
        The p-value, and the side: 1 where the truth lies too often above the fit (which is too
        low), -1 where it lies below. Both ``(*shape)``, float64.

    Cost:
        O(N^2) for each number.

    Raises:
        ShapeError: There is no row.
        WeightError: A probability is outside of [0, 1] or not finite.

    Source: Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 4 (the statistic);
    Butler 1969, Ann. Math. Statist. 40, 2209 (its distribution).

    Example:
        >>> import torch
        >>> from pyro_nfvi.calibration._uniformity_tests import bias_test
        >>> p = (torch.arange(20) + 0.3) / 20
        >>> pvalue, side = bias_test(torch.stack([p, p**0.2], -1))
        >>> pvalue > 0.05, side
        (tensor([ True, False]), tensor([-1.,  1.], dtype=torch.float64))
    """
    rows, shape = _rows(p)
    values, sides = [], []
    for column in rows.T:
        order = np.argsort(-np.abs(column - 0.5), kind="stable")
        walk = np.cumsum(np.sign(column[order] - 0.5))
        far = int(np.abs(walk).argmax())
        values.append(_leaves(len(column), int(abs(walk[far]))))
        sides.append(float(np.sign(walk[far])))
    return (
        torch.tensor(values, dtype=torch.float64).reshape(shape),
        torch.tensor(sides, dtype=torch.float64).reshape(shape),
    )


def width_test(p: Tensor) -> tuple[Tensor, Tensor]:
    r"""Test whether an approximation is as wide as it should be.

    For an exact posterior the p of :func:`bias_test` are uniform. So is then
    :math:`|2 p_i - 1|`, which is close to 1 too often where the approximation is too narrow. Tested
    by the one-sample Kolmogorov-Smirnov distance. Under uniform p this test and
    :func:`bias_test` are independent, and together they see every departure from uniformity.

    Args:
        p: Probabilities in (0, 1), ``(N, *shape)``.

    Returns:
        The p-value (asymptotic with Stephens' correction, good from N = 5 on), and the side: 1
        where the approximation is too narrow, -1 where it is too wide. Both ``(*shape)``, float64.

    Cost:
        O(N log N) for each number.

    Raises:
        ShapeError: There is no row.
        WeightError: A probability is outside of [0, 1] or not finite.

    Source: uniform ranks as in Talts et al. 2018, arXiv:1804.06788; Stephens 1970, J. R. Statist.
    Soc. B 32, 115.

    Example:
        >>> import torch
        >>> from pyro_nfvi.calibration._uniformity_tests import width_test
        >>> p = (torch.arange(100) + 0.3) / 100
        >>> pvalue, side = width_test(torch.stack([p, (p + 1) / 3], -1))
        >>> pvalue > 0.05, side[1]
        (tensor([ True, False]), tensor(-1., dtype=torch.float64))
    """
    rows, shape = _rows(p)
    folded = np.sort(np.abs(2 * rows - 1), axis=0)
    count = len(folded)
    above = (np.arange(1, count + 1) / count)[:, None] - folded
    below = folded - (np.arange(count) / count)[:, None]
    wide, narrow = above.max(0), below.max(0)
    root = math.sqrt(count)
    values = [_kolmogorov((root + 0.12 + 0.11 / root) * d) for d in np.maximum(wide, narrow)]
    return (
        torch.tensor(values, dtype=torch.float64).reshape(shape),
        torch.tensor(np.where(narrow > wide, 1.0, -1.0)).reshape(shape),
    )


def _rows(p: Tensor) -> tuple[np.ndarray, torch.Size]:
    """The probabilities as a matrix (N, numbers), and the shape of a row."""
    if p.ndim == 0 or len(p) == 0:
        raise ShapeError(f"p holds a row for each simulation; got the shape {tuple(p.shape)}.")
    rows = p.detach().cpu().double().flatten(1).numpy() if p.ndim > 1 else _column(p)
    if not ((rows >= 0) & (rows <= 1)).all():
        raise WeightError("p are probabilities between 0 and 1; some are outside or not finite.")
    return rows, p.shape[1:]


def _column(p: Tensor) -> np.ndarray:
    column: np.ndarray = p.detach().cpu().double().numpy()[:, None]
    return column


def _leaves(steps: int, height: int) -> float:
    """Probability that a fair walk of so many steps is ever at least so far from 0."""
    if height <= 0:
        return 1.0
    inside = np.zeros(2 * height + 1)  # places -height ... height; the ends hold what has left
    inside[height] = 1.0
    left = 0.0
    for _ in range(steps):
        moved = np.zeros_like(inside)
        moved[1:] += inside[:-1] / 2
        moved[:-1] += inside[1:] / 2
        left += float(moved[0] + moved[-1])
        moved[0] = moved[-1] = 0.0
        inside = moved
    return min(1.0, left)


def _kolmogorov(x: float) -> float:
    """Upper tail of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0  # to 12 digits, where the series below converges slowly
    total = sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * total))
