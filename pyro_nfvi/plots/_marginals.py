"""Marginals, beside a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._validation import whole
from pyro_nfvi.plots._draws_to_plot import bounds_of, column, draws_of, elements, has
from pyro_nfvi.plots._recipe import RECIPE
from pyro_nfvi.plots._style import FIT, GREY, REFERENCE, drawing, limits


@knows_options
def plot_marginals(
    source: Any,
    reference: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    columns: int = 5,
    labels: tuple[str, str] = ("fit", "reference"),
    title: str | None = None,
) -> Any:
    """Plot the marginal of every number, beside a reference if there is one.

    Ticks under each panel mark the 5, 50 and 95 % quantiles. The axis of a site of a fit ends where
    its support does.

    Args:
        source: A fit, or draws ``{site: (S, *shape)}``.
        reference: Draws to compare with, likewise.
        names: Sites or elements (``"theta"``, ``"theta[0]"``, ``"log tau"``) to show; all sites
            by default, 24 panels at most.
        columns: Panels in a row.
        labels: What to call the two in the legend.
        title: Title of the picture.

    Returns:
        The matplotlib figure.

    Raises:
        OptionError: A name is not among the draws.

    Example:
        >>> import torch
        >>> figure = plot_marginals({"mu": torch.randn(100), "theta": torch.randn(100, 3)})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['mu', 'theta[0]', 'theta[1]', 'theta[2]']
    """
    draws = draws_of(source)
    panels = [label for name in (names or draws) for label in elements(draws, name)]
    shown = panels if names else panels[: RECIPE.max_panels]
    columns = min(whole("columns", columns), len(shown))
    rows = math.ceil(len(shown) / columns)
    with drawing(
        rows,
        columns,
        figsize=(2.1 * columns + 0.4, 1.75 * rows + 0.5),
        squeeze=False,
    ) as (figure, grid):
        for axes, label in zip(grid.flat, shown):
            known = has(reference, label)
            other = column(reference, label) if reference is not None and known else None
            _marginal(axes, column(draws, label), other, labels, bounds_of(source, label))
            axes.set_title(label, loc="left")
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        handles, texts = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper right", ncols=2)
        left = f" (the first {len(shown)} of {len(panels)})" if len(shown) < len(panels) else ""
        figure.suptitle((title or "Marginals") + left, x=0.01, ha="left", fontsize=11)
    return figure


def _marginal(
    axes: Any,
    values: np.ndarray,
    other: np.ndarray | None,
    labels: tuple[str, str],
    bounds: tuple[float, float],
) -> None:
    parts = [values] if other is None else [values, other]
    low, high = limits(parts, 0.005)
    # A bar beyond the end of the support would show mass where there is none.
    low, high = max(low, bounds[0]), min(high, bounds[1])
    bins = np.linspace(low, high, 41)
    if other is not None:
        axes.hist(other, bins, density=True, color=REFERENCE, alpha=0.75, label=labels[1])
        axes.hist(
            values, bins, density=True, histtype="step", color=FIT, linewidth=1.5, label=labels[0]
        )
    else:
        axes.hist(values, bins, density=True, color=FIT, alpha=0.75, label=labels[0])
    top = axes.get_ylim()[1]
    for row, (part, colour) in enumerate(zip(parts, (FIT, GREY))):
        height = -top * 0.055 * (1 + row)
        marks = np.quantile(part[np.isfinite(part)], [0.05, 0.5, 0.95])
        axes.plot(marks[[0, 2]], [height, height], color=colour, linewidth=1.4)
        axes.plot(marks[1], height, "o", color=colour, markersize=3)
    axes.set_ylim(-top * 0.055 * (1.5 + len(parts)), top)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
