"""Densities in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._option_names import knows_options
from pyro_nfvi.plots._style import INK, array, drawing, levels_holding


@knows_options
def plot_density_2d(
    log_prob: Any,
    *,
    bounds: tuple[float, float, float, float] = (-4.0, 4.0, -4.0, 4.0),
    points: int = 161,
    columns: int | None = None,
    title: str | None = None,
) -> Any:
    """Plot densities in two dimensions as shades with contours, a panel each.

    The contours of a panel hold 50, 90 and 99 % of its mass. The panels of a row share their
    shades.

    Args:
        log_prob: A function from points (N, 2) to log densities (N,), anything with such a
            ``log_prob``, or a dict ``{title: function}`` for several panels.
        bounds: ``(left, right, bottom, top)``.
        points: Points of the grid along each axis.
        columns: Panels in a row; all in one row by default.
        title: Title of the picture.

    Returns:
        The matplotlib figure.

    Example:
        >>> import torch
        >>> figure = plot_density_2d({"normal": lambda x: -x.square().sum(-1) / 2}, points=21)
        >>> figure.axes[0].get_title(loc="left")
        'normal'
    """
    several: Mapping[str, Any] = log_prob if isinstance(log_prob, Mapping) else {"": log_prob}
    left, right, bottom, top = bounds
    one, two = np.linspace(left, right, points), np.linspace(bottom, top, points)
    grid_points = torch.tensor(np.stack(np.meshgrid(one, two), -1).reshape(-1, 2))
    densities = {name: _density(function, grid_points) for name, function in several.items()}
    densities = {name: found.reshape(points, points) for name, found in densities.items()}
    columns = columns or len(several)
    rows = math.ceil(len(several) / columns)
    with drawing(
        rows,
        columns,
        figsize=(2.7 * columns, 2.75 * rows + 0.3),
        squeeze=False,
        sharex=True,
        sharey=True,
    ) as (figure, grid):
        values = list(densities.values())
        for index, (axes, (name, density)) in enumerate(zip(grid.flat, densities.items())):
            row = index // columns
            brightest = max(found.max() for found in values[row * columns : (row + 1) * columns])
            axes.imshow(
                np.sqrt(density / brightest),  # the root keeps faint bridges visible
                extent=bounds,
                origin="lower",
                cmap="Blues",
                vmin=0,
                vmax=1.1,
                aspect="auto",
                interpolation="bilinear",
            )
            levels = levels_holding(density, (0.99, 0.9, 0.5))
            axes.contour(one, two, density, levels=levels, colors=INK, linewidths=0.7)
            axes.set_title(name, loc="left")
        for axes in grid.flat[len(several) :]:
            axes.remove()
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _density(function: Any, points: Tensor) -> np.ndarray:
    score: Callable[[Tensor], Tensor] = getattr(function, "log_prob", function)
    with torch.no_grad():
        parts = [array(score(chunk)) for chunk in points.split(8192)]
    return np.exp(np.concatenate(parts).astype(float))
