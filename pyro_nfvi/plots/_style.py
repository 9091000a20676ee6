"""Colours and style of the pictures, and the import of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from pyro_nfvi._optional_import import process_kept
from pyro_nfvi.errors import MissingPackageError

#: Colours of the fit, of what it is compared with (areas, points), and of thin lines.
FIT, REFERENCE, GREY, INK = "#1f6f9f", "#b9bfc9", "#6b7280", "#3c4350"
#: Settings that hold while a picture is drawn.
STYLE = {
    "axes.edgecolor": "#8a919e",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 120,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def pyplot() -> Any:
    """Import ``matplotlib.pyplot``, or say how to install it."""
    try:
        with process_kept():
            import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingPackageError(
            "Pictures need matplotlib, which is not installed: pip install 'pyro-nfvi[arviz]', or "
            "pip install matplotlib"
        ) from error
    return plt


@contextmanager
def drawing(
    rows: int = 1,
    columns: int = 1,
    *,
    style: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """Open a figure in the style of all pictures, and take it from pyplot's list at the end.

    A figure that stays there is shown a second time by a notebook, and kept in memory. Where
    pyplot has windows it stays, so that ``plt.show()`` finds it; a picture that fails never does.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        style: Settings beside those of all pictures.
        options: Options of ``plt.subplots``.

    Yields:
        The figure and its axes.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> with drawing(1, 2) as (figure, axes):
        ...     line = axes[0].plot([1, 2])
        >>> figure.number in plt.get_fignums()
        False
    """
    plt = pyplot()
    with plt.rc_context({**STYLE, **style}):
        figure, axes = plt.subplots(rows, columns, layout="constrained", **options)
        try:
            yield figure, axes
        except BaseException:
            plt.close(figure)
            raise
        if type(figure.canvas).__name__ == "FigureCanvasAgg":  # neither a window nor a widget
            plt.close(figure)


def array(value: Any) -> np.ndarray:
    """Make a NumPy array of a tensor or sequence."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def limits(parts: Sequence[np.ndarray], tail: float) -> tuple[float, float]:
    """Ends of an axis that leaves out a share ``tail`` of the points at each end."""
    ends = [np.quantile(part[np.isfinite(part)], [tail, 1 - tail]) for part in parts]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def levels_holding(density: np.ndarray, masses: Sequence[float]) -> list[float]:
    """Heights above which the density holds the given masses, rising."""
    ordered = np.sort(density.ravel())[::-1]
    total = np.cumsum(ordered) / ordered.sum()
    places = [min(int(np.searchsorted(total, mass)), len(total) - 1) for mass in masses]
    heights = [float(ordered[place]) for place in places]
    return sorted(set(heights))
