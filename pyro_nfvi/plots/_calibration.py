"""Histograms of simulation-based calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots._draws_to_plot import column, elements
from pyro_nfvi.plots._recipe import RECIPE
from pyro_nfvi.plots._style import FIT, GREY, REFERENCE, drawing


@knows_options
def plot_calibration(
    found: Any,
    *,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    columns: int = 4,
    title: str | None = None,
) -> Any:
    """Plot histograms of p, a panel for each number.

    Flat where fits are right; a slope is bias, a bowl is too narrow, a hill too wide. The band
    holds 95 % of the heights that a bar has by chance; the line is the expected one.

    Args:
        found: The result of :func:`pyro_nfvi.vsbc`, or probabilities ``{site: (N, *shape)}``.
        names: Sites or elements to show; all by default, 24 panels at most.
        bins: Bars; by default one for ten fits, from 5 to 20.
        columns: Panels in a row.
        title: Title of the picture.

    Returns:
        The matplotlib figure.

    Raises:
        OptionError: A name is not among the sites, or no fit was done.

    Example:
        >>> import torch
        >>> figure = plot_calibration({"mu": torch.rand(100), "tau": torch.rand(100)})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['mu', 'tau']
    """
    p = getattr(found, "p", found)
    if not p:
        raise OptionError("plot_calibration was given no probabilities: no fit was done.")
    panels = [label for name in (names or p) for label in elements(p, name)]
    shown = panels if names else panels[: RECIPE.max_panels]
    words = {row.name: row.word for row in getattr(found, "rows", ())}
    columns = min(whole("columns", columns), len(shown))
    rows = math.ceil(len(shown) / columns)
    with drawing(
        rows,
        columns,
        figsize=(2.3 * columns + 0.4, 1.75 * rows + 0.6),
        squeeze=False,
        sharex=True,
    ) as (figure, grid):
        for axes, label in zip(grid.flat, shown):
            values = column(p, label)
            bars = bins or min(20, max(5, len(values) // 10))
            low, high = _band(len(values), bars)
            axes.axhspan(low, high, color=REFERENCE, alpha=0.5, linewidth=0)
            axes.axhline(len(values) / bars, color=GREY, linewidth=0.9)
            axes.hist(values, np.linspace(0, 1, bars + 1), color=FIT, alpha=0.75, rwidth=0.94)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.set_title(f"{label}: {words[label]}" if words.get(label) else label, loc="left")
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        figure.supxlabel("p = Pr(θ < truth) under the fit", fontsize=9)
        left = f" (the first {len(shown)} of {len(panels)})" if len(shown) < len(panels) else ""
        text = title or f"Calibration over {len(next(iter(p.values())))} fits"
        figure.suptitle(text + left, x=0.01, ha="left", fontsize=11)
    return figure


def _band(count: int, bars: int) -> tuple[int, int]:
    """Heights between which a bar lies by chance: quantiles of a binomial distribution."""
    logs = [math.lgamma(k + 1) for k in range(count + 1)]
    share = 1 / bars
    k = np.arange(count + 1)
    log_mass = logs[count] - np.array(logs) - np.array(logs)[::-1]
    log_mass = log_mass + k * math.log(share) + (count - k) * math.log1p(-share)
    cdf = np.cumsum(np.exp(log_mass))
    tail = (1 - RECIPE.band) / 2
    return int(np.searchsorted(cdf, tail)), int(np.searchsorted(cdf, 1 - tail))
