"""Pictures of a VAE: reconstructions, samples, interpolations, curves, and posteriors in 2-D."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.plots._style import FIT, GREY, INK, REFERENCE, drawing, pyplot
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._posterior_picture import plot_posterior
from pyro_nfvi.vae._recipe import FIGURES

__all__ = [
    "plot_curves",
    "plot_interpolation",
    "plot_posterior",
    "plot_reconstructions",
    "plot_samples",
    "save_figure",
    "span_of",
]


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all, and close it.

    Raises:
        FileError: The disk is full, or the folder is gone or read-only.
    """
    target = Path(path)
    try:
        with whole_file(target, "picture") as draft:
            figure.savefig(draft, format="png")
    except FileError as error:
        raise FileError(
            f"{error} Checkpoints and results of the run are complete; draw pictures again with "
            "load(folder) and the functions of pyro_nfvi.vae._pictures."
        ) from error
    finally:
        pyplot().close(figure)


def span_of(vae: FlowVAE, x: Tensor) -> tuple[float, float]:
    """Return the values that are drawn black and white: one scale for all pictures of a data set.

    Levels of a categorical and pixels from 0 to 1 have their own scale; other real pixels that of
    the images.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> from pyro_nfvi.vae._pictures import span_of
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> span_of(vae, torch.full((1, 4, 4), 0.5))
        (0.0, 1.0)
    """
    levels = getattr(vae.likelihood, "levels", None)
    if levels is not None:
        return 0.0, float(levels - 1)
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _visible(images: Tensor, span: tuple[float, float]) -> Tensor:
    """Images to look at from 0 to 1: grey ``(N, H, W)`` or colour ``(N, H, W, 3)``."""
    shape = images.shape
    if images.dim() == 4 and shape[-1] != 3 and shape[1] in (1, 3):
        images = images.movedim(1, -1)
    if images.dim() == 4 and images.shape[-1] == 1:
        images = images.squeeze(-1)
    if images.dim() != 3 and not (images.dim() == 4 and images.shape[-1] == 3):
        raise OptionError(
            "Pictures need grey images (N, H, W) or colour ones, (N, 3, H, W) or (N, H, W, 3); "
            f"got (N, {', '.join(map(str, shape[1:]))}). Reshape flat images to height and width."
        )
    low, high = span
    scaled = (images.detach().float().cpu() - low) / max(high - low, FIGURES.least_range)
    return scaled.clamp(0, 1)


def _mosaic(images: Tensor, columns: int) -> Any:
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` side by side, a thin line between, row by row."""
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    canvas = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1, *images.shape[3:])
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas.numpy()


def _show(images: Tensor, columns: int, title: str) -> Any:
    grid = _mosaic(images, columns)
    height = max(FIGURES.least_height, FIGURES.width / grid.shape[1] * grid.shape[0])
    with drawing(figsize=(FIGURES.width, height + FIGURES.title)) as (figure, axes):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, loc="left", color=INK)
    return figure


@knows_options
@torch.no_grad()
def plot_reconstructions(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    columns: int = FIGURES.columns,
    seed: int = 0,
) -> Any:
    """Images in odd rows, below each its reconstruction from one draw of its posterior.

    Both have one scale of greys, that of the images.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import plot_reconstructions
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> figure = plot_reconstructions(vae, torch.bernoulli(torch.full((6, 4, 4), 0.5)))
        >>> len(figure.axes)
        1
    """
    whole("plot_reconstructions: images x", len(x))
    whole("plot_reconstructions: columns", columns)
    columns = min(columns, len(x))
    count = len(x) // columns * columns
    x, y = x[:count], None if y is None else y[:count]
    generator = stream(seed, "reconstructions", device=x.device)
    with seeded(seed, "vae nets"):
        again = vae.reconstruct(x, y, generator=generator)
    span = span_of(vae, x)
    both = [_visible(x, span), _visible(again, span)]
    rows = [part.reshape(-1, columns, *part.shape[1:]) for part in both]
    woven = torch.stack(rows, 1).reshape(-1, *both[0].shape[1:])
    return _show(woven, columns, "images and, below each, their reconstruction")


@knows_options
@torch.no_grad()
def plot_samples(
    vae: FlowVAE,
    *,
    rows: int = 6,
    columns: int = FIGURES.columns,
    y: Tensor | None = None,
    seed: int = 0,
    span: tuple[float, float] | None = None,
) -> Any:
    """Expected images at draws from the prior; with labels a column each.

    Args:
        vae: The VAE.
        rows: Rows of images.
        columns: Columns of images.
        y: Labels of a conditional VAE, ``rows * columns`` of them.
        seed: Of the draws.
        span: Values drawn black and white, such as ``span_of(vae, x)``; from the samples if None.

    Example:
        >>> from pyro_nfvi.vae import plot_samples
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> len(plot_samples(vae, rows=2, columns=3).axes)
        1
    """
    whole("plot_samples: rows", rows)
    whole("plot_samples: columns", columns)
    device = next(vae.parameters()).device
    if vae.condition_dim and y is None:
        columns = min(columns, vae.condition_dim)
        y = torch.arange(columns, device=device).repeat(rows)
    generator = stream(seed, "samples", device=device)
    with seeded(seed, "vae nets"):
        images = vae.sample(rows * columns, y, generator=generator)
    seen = _visible(images, span_of(vae, images) if span is None else span)
    return _show(seen, columns, "samples: expected images of the model")


@knows_options
@torch.no_grad()
def plot_interpolation(
    vae: FlowVAE, x: Tensor, y: Tensor | None = None, *, steps: int = FIGURES.columns, seed: int = 0
) -> Any:
    """Between neighbours of a list of images: a straight way between draws of their posteriors.

    Each row goes from one image to the next but one: the first and last column are
    reconstructions of images 2i and 2i + 1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import plot_interpolation
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> figure = plot_interpolation(vae, torch.bernoulli(torch.full((6, 4, 4), 0.5)))
    """
    pairs = len(x) // 2
    if not pairs:
        raise OptionError(f"An interpolation needs at least 2 images; got {len(x)}.")
    whole("plot_interpolation: steps", steps)
    with evaluation(vae), seeded(seed, "vae nets"):
        images = _between(vae, x, y, pairs, steps, seed)
    return _show(_visible(images, span_of(vae, x)), steps, "between pairs of images")


def _between(
    vae: FlowVAE, x: Tensor, y: Tensor | None, pairs: int, steps: int, seed: int
) -> Tensor:
    """Expected images on the ways between pairs, row by row."""
    generator = stream(seed, "interpolation", device=x.device)
    z = vae.encode(x[: 2 * pairs], None if y is None else y[: 2 * pairs])
    ends = z.draw(1, generator=generator).z[0].reshape(pairs, 2, -1)
    share = torch.linspace(0, 1, steps, device=x.device, dtype=ends.dtype).reshape(1, -1, 1)
    way = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    c = vae.condition(None if y is None else y[: 2 * pairs], x[: 2 * pairs])
    if c is not None:
        c = c.reshape(pairs, 2, -1)
        c = c[:, :1] * (1 - share) + c[:, 1:] * share
    return vae.likelihood.mean(vae.decode(way, c)).flatten(0, 1)


def plot_curves(lines: Sequence[dict[str, Any]], title: str = "") -> Any:
    """Negative ELBO of training and validation images, and KL divergence, against epochs.

    The weight of the KL divergence in the loss is the dashed line, with an axis of its own; a
    dotted line stands at the epoch of the best validation bound. Numbers that are not finite are
    left out. Where the first epochs would hide the rest, they are above the axis, and the picture
    says so.

    Args:
        lines: Lines of ``log.jsonl``.
        title: Title, such as the flow of the VAE.

    Example:
        >>> from pyro_nfvi.vae._pictures import plot_curves
        >>> part = {"elbo": -100.0, "kl": 20.0, "reconstruction": -80.0}
        >>> len(plot_curves([{"epoch": 1, "train": part, "valid": part}]).axes)
        2
    """
    if not lines:
        raise OptionError("There is no line in the log to draw.")
    with drawing(2, 1, figsize=FIGURES.curves, sharex=True) as (figure, (left, right)):
        for part, colour in (("train", REFERENCE), ("valid", FIT)):
            _curve(left, lines, part, "elbo", -1.0, colour)
            _curve(right, lines, part, "kl", 1.0, colour)
        low, high = _heights(lines)
        if low < high:
            room = FIGURES.curve_nats
            left.set_ylim(low - FIGURES.curve_room * (high - low) - room, high + room)
            above = [line["epoch"] for line in lines if -line["valid"]["elbo"] > high + room]
            if above:
                span = (
                    f"epoch {above[0]}" if len(above) == 1 else f"epochs {above[0]} to {above[-1]}"
                )
                left.set_title(f"{span} above the axis", loc="right", color=GREY, fontsize=8)
        left.set_ylabel("negative ELBO, nats")
        right.set_ylabel("KL divergence, nats")
        right.set_xlabel("epoch")
        if title:
            left.set_title(title, loc="left")
        best = _best_epoch(lines)
        if best is not None:
            left.axvline(
                best, color=GREY, linewidth=0.8, linestyle=":", label=f"best: epoch {best}"
            )
        left.legend(loc="upper right")
        weighed = [line for line in lines if "kl_weight" in line]
        if weighed:  # logs of earlier versions have none
            beside = right.twinx()
            beside.plot(
                [line["epoch"] for line in weighed], [line["kl_weight"] for line in weighed],
                color=GREY, linestyle="--", marker="." if len(weighed) == 1 else None,
                label="weight of the KL divergence",
            )  # fmt: skip
            beside.legend(loc="lower right")
            beside.set_ylabel("weight")
            most = max(1.0, *(line["kl_weight"] for line in weighed))
            beside.set_ylim(0, (1 + FIGURES.curve_room) * most)
    return figure


def _curve(
    axes: Any, lines: Sequence[dict[str, Any]], part: str, key: str, sign: float, colour: str
) -> None:
    kept = [line for line in lines if math.isfinite(line[part][key])]
    heights = [sign * line[part][key] for line in kept]
    # A line through a single point is not to be seen.
    mark = "o" if len(kept) == 1 else None
    axes.plot([line["epoch"] for line in kept], heights, color=colour, label=part, marker=mark)


def _best_epoch(lines: Sequence[dict[str, Any]]) -> int | None:
    """Epoch with the highest validation bound; None for a single epoch, or without a number."""
    known = [line for line in lines if math.isfinite(line["valid"]["elbo"])]
    if len(known) < 2:
        return None
    return int(max(known, key=lambda line: line["valid"]["elbo"])["epoch"])


def _heights(lines: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Lowest of all, and highest of validation after the first lines; NaN where there is none."""
    every = [-line[part]["elbo"] for line in lines for part in ("train", "valid")]
    late = [-line["valid"]["elbo"] for line in lines[len(lines) // FIGURES.early_lines :]]
    low = min(filter(math.isfinite, every), default=math.nan)
    return low, max(filter(math.isfinite, late), default=math.nan)
