"""Two numbers against each other, beside a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_nfvi._option_names import knows_options
from pyro_nfvi.plots._draws_to_plot import column, draws_of
from pyro_nfvi.plots._recipe import RECIPE
from pyro_nfvi.plots._style import FIT, GREY, INK, drawing, limits


@knows_options
def plot_pair(
    source: Any,
    x: str,
    y: str,
    reference: Mapping[str, Any] | None = None,
    *,
    labels: tuple[str, str] = ("fit", "reference"),
    title: str | None = None,
) -> Any:
    """Plot draws of two numbers against each other, the reference in a panel beside.

    Contours hold 50 and 90 % of the reference (of the fit, if there is none) in both panels.

    Args:
        source: A fit, or draws ``{site: (S, *shape)}``.
        x: Site or element, such as ``"tau"``, ``"theta[0]"`` or ``"log tau"``.
        y: Likewise.
        reference: Draws to compare with.
        labels: Titles of the two panels.
        title: Title of the picture.

    Returns:
        The matplotlib figure.

    Raises:
        OptionError: A name is not among the draws.

    Example:
        >>> import torch
        >>> draws = {"tau": torch.rand(200), "theta": torch.randn(200, 8)}
        >>> len(plot_pair(draws, "theta[0]", "log tau").axes)
        1
    """
    draws = draws_of(source)
    clouds = [(labels[0], FIT, column(draws, x), column(draws, y))]
    if reference is not None:
        clouds.append((labels[1], GREY, column(reference, x), column(reference, y)))
    _, _, exact_x, exact_y = clouds[-1]
    ends = [
        limits([one for _, _, one, _ in clouds], 0.002),
        limits([two for _, _, _, two in clouds], 0.002),
    ]
    with drawing(
        1,
        len(clouds),
        figsize=(4.1 * len(clouds), 3.9),
        sharex=True,
        sharey=True,
        squeeze=False,
    ) as (figure, grid):
        for axes, (label, colour, one, two) in zip(grid.flat, clouds):
            size = min(len(one), len(clouds[-1][2]), 4000)
            axes.scatter(one[:size], two[:size], s=5, color=colour, alpha=0.35, linewidths=0)
            _contours(axes, exact_x, exact_y, ends)
            axes.set_xlim(ends[0])
            axes.set_ylim(ends[1])
            axes.set_xlabel(x)
            if len(clouds) > 1:
                axes.set_title(label, loc="left")
        grid.flat[0].set_ylabel(y)
        figure.suptitle(title or "", x=0.01, ha="left", fontsize=11)
    return figure


def _contours(axes: Any, x: np.ndarray, y: np.ndarray, ends: Sequence[tuple[float, float]]) -> None:
    """Lines within which 50 and 90 % of the points lie."""
    # Beyond the axes, so that lines close outside of the picture and not at its edge.
    wide = [(low - 0.1 * (high - low), high + 0.1 * (high - low)) for low, high in ends]
    density, one, two = np.histogram2d(x, y, bins=RECIPE.contour_cells, range=wide)
    width = np.arange(-6, 7) / 1.7
    kernel = np.exp(-(width**2) / 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        density = np.apply_along_axis(np.convolve, axis, density, kernel, mode="same")
    places = [
        np.clip(np.digitize(values, edges) - 1, 0, RECIPE.contour_cells - 1)
        for values, edges in ((x, one), (y, two))
    ]
    # Smoothing spreads mass into empty space: the points themselves say which line holds how many.
    levels = np.unique(np.quantile(density[places[0], places[1]], [0.1, 0.5]))
    if levels[0] <= 0:
        return
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (one, two)]
    axes.contour(*centres, density.T, levels=levels, colors=INK, linewidths=0.9, alpha=0.8)
