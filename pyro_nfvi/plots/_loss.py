"""The loss against the steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_nfvi._option_names import knows_options
from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots._style import FIT, GREY, INK, REFERENCE, array, drawing


@knows_options
def plot_loss(source: Any, *, title: str | None = None) -> Any:
    """Plot the loss (the negative bound, in nats) against the steps.

    The running mean is drawn over the single steps; the axis leaves the first, steep part out of
    the picture if it would hide the rest. Where a fit trained one flow after the other, dashed
    lines and their names mark where each begins.

    Args:
        source: A fit, or losses: a tensor or sequence, one per step.
        title: Title of the picture.

    Returns:
        The matplotlib figure.

    Example:
        >>> figure = plot_loss([5.0, 3.0, 2.0, 2.0])
        >>> len(figure.axes)
        1
    """
    losses = array(source.losses if hasattr(source, "losses") else source).astype(float).ravel()
    if losses.size == 0:
        raise OptionError("plot_loss was given no losses.")
    steps = np.arange(1, losses.size + 1)
    width = max(1, losses.size // 50)
    mean = _running_mean(losses, width)
    with drawing(figsize=(6, 3.4)) as (figure, axes):
        axes.plot(steps, losses, color=REFERENCE, linewidth=0.6, label="each step")
        axes.plot(steps, mean, color=FIT, linewidth=1.8, label=f"mean of {width} steps")
        finite = losses[np.isfinite(losses)]
        if finite.size > 20:
            late = finite[finite.size // 5 :]
            low, high = np.quantile(late, [0.002, 0.998])
            margin = 0.15 * (high - low) + 1e-9
            early = np.nanmax(mean[losses.size // 20 :])
            axes.set_ylim(low - margin, max(high, min(early, high + 2 * (high - low))) + margin)
        axes.set_xlim(0, losses.size)
        axes.set_xlabel("step")
        axes.set_ylabel("negative ELBO, nats")
        stages = _stages(source, losses.size)
        for begin, name in stages:
            if begin:
                axes.axvline(begin, color=GREY, linewidth=0.8, linestyle="--")
            axes.annotate(
                name, (begin, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
        figure.legend(loc="outside upper right", ncols=2)
        axes.set_title(title or "Loss", loc="left", pad=16 if stages else None)
    return figure


def _stages(source: Any, count: int) -> list[tuple[int, str]]:
    """First step and name of each training whose losses follow each other; none for one alone."""
    settings = getattr(getattr(source, "training", None), "settings", None)
    kept = [one for one in getattr(settings, "tried", ()) if one.kept and one.steps]
    # The losses of a Gaussian in front of a flow are not among them where it was found by itself.
    for parts in (kept, [one for one in kept if one.flow]):
        if len(parts) > 1 and sum(one.steps for one in parts) == count:
            ends = np.cumsum([0, *(one.steps for one in parts)])
            names = [one.flow or "Gaussian" for one in parts]
            return [(int(begin), name) for begin, name in zip(ends, names)]
    return []


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last ``width`` finite values at each step."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[stop] - total[start]) / (count[stop] - count[start])
