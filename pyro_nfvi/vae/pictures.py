"""Pictures of a VAE: reconstructions, samples, interpolations, curves, and posteriors in 2-D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots.style import FIT, GREY, INK, REFERENCE, STYLE, levels_holding, pyplot
from pyro_nfvi.vae.model import FlowVAE
from pyro_nfvi.vae.streams import stream

__all__ = [
    "plot_curves",
    "plot_interpolation",
    "plot_posterior",
    "plot_reconstructions",
    "plot_samples",
]

#: Masses inside the contours of a posterior.
_MASSES = (0.5, 0.9, 0.99)


def _mosaic(images: Tensor, columns: int) -> Any:
    """Images ``(N, H, W)`` side by side, a thin line between, row by row."""
    count, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas.numpy()


def _grey(images: Tensor) -> Tensor:
    """Images to look at, ``(N, H, W)`` from 0 to 1."""
    images = images.detach().float().cpu()
    if images.dim() != 3:
        raise OptionError(f"Pictures need grey images (N, H, W); got {tuple(images.shape)}.")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        images = (images - low) / max(high - low, 1e-9)
    return images


def _show(images: Tensor, columns: int, title: str) -> Any:
    plt = pyplot()
    grid = _mosaic(images, columns)
    with plt.rc_context(STYLE):
        scale = 7.0 / grid.shape[1]
        figure, axes = plt.subplots(
            figsize=(7.0, max(1.0, scale * grid.shape[0]) + 0.35), layout="constrained"
        )
        axes.imshow(grid, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, loc="left", color=INK)
    return figure


@torch.no_grad()
def plot_reconstructions(
    vae: FlowVAE, x: Tensor, y: Tensor | None = None, *, columns: int = 10, seed: int = 0
) -> Any:
    """Images in odd rows, below each its reconstruction from one draw of its posterior.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Architecture, plot_reconstructions
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> figure = plot_reconstructions(vae, torch.bernoulli(torch.full((6, 4, 4), 0.5)))
        >>> len(figure.axes)
        1
    """
    columns = min(columns, len(x))
    count = len(x) // columns * columns
    x, y = x[:count], None if y is None else y[:count]
    generator = stream(seed, 1, device=x.device)
    again = vae.reconstruct(x, y, generator=generator)
    levels = max(float(x.max()), 1.0)
    both = [_grey(x / levels), _grey(again / levels)]
    rows = [part.reshape(-1, columns, *part.shape[1:]) for part in both]
    woven = torch.stack(rows, 1).reshape(-1, *both[0].shape[1:])
    return _show(woven, columns, "images and, below each, their reconstruction")


@torch.no_grad()
def plot_samples(
    vae: FlowVAE, *, rows: int = 6, columns: int = 10, y: Tensor | None = None, seed: int = 0
) -> Any:
    """Expected images at draws from the prior; with labels a column each.

    Example:
        >>> from pyro_nfvi.vae import Architecture, plot_samples
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> len(plot_samples(vae, rows=2, columns=3).axes)
        1
    """
    device = next(vae.parameters()).device
    if vae.condition_dim and y is None:
        columns = min(columns, vae.condition_dim)
        y = torch.arange(columns, device=device).repeat(rows)
    generator = stream(seed, 2, device=device)
    images = vae.sample(rows * columns, y, generator=generator)
    return _show(_grey(images / _largest(vae)), columns, "samples: expected images of the model")


def _largest(vae: FlowVAE) -> float:
    return float(getattr(vae.likelihood, "levels", 2) - 1)


@torch.no_grad()
def plot_interpolation(
    vae: FlowVAE, x: Tensor, y: Tensor | None = None, *, steps: int = 10, seed: int = 0
) -> Any:
    """Between neighbours of a list of images: a straight way between draws of their posteriors.

    Each row goes from one image to the next but one: the first and last column are
    reconstructions of images 2i and 2i + 1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Architecture, plot_interpolation
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> figure = plot_interpolation(vae, torch.bernoulli(torch.full((6, 4, 4), 0.5)))
    """
    pairs = len(x) // 2
    if not pairs:
        raise OptionError(f"An interpolation needs at least 2 images; got {len(x)}.")
    generator = stream(seed, 3, device=x.device)
    z = vae.encode(x[: 2 * pairs], None if y is None else y[: 2 * pairs])
    ends = z.draw(1, generator=generator).z[0].reshape(pairs, 2, -1)
    share = torch.linspace(0, 1, steps, device=x.device, dtype=ends.dtype).reshape(1, -1, 1)
    way = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    c = vae.condition(None if y is None else y[: 2 * pairs], x[: 2 * pairs])
    if c is not None:
        c = c.reshape(pairs, 2, -1)
        c = c[:, :1] * (1 - share) + c[:, 1:] * share
    images = vae.likelihood.mean(vae.decode(way, c)).flatten(0, 1)
    return _show(_grey(images / _largest(vae)), steps, "between pairs of images")


def plot_curves(lines: Sequence[dict[str, Any]]) -> Any:
    """Negative ELBO of training and validation images, and KL divergence, against epochs.

    Args:
        lines: Lines of ``log.jsonl``.

    Example:
        >>> from pyro_nfvi.vae import plot_curves
        >>> part = {"elbo": -100.0, "kl": 20.0, "reconstruction": -80.0}
        >>> len(plot_curves([{"epoch": 1, "train": part, "valid": part}]).axes)
        2
    """
    if not lines:
        raise OptionError("There is no line in the log to draw.")
    plt = pyplot()
    epochs = [line["epoch"] for line in lines]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.0), layout="constrained")
        for part, colour in (("train", REFERENCE), ("valid", FIT)):
            left.plot(epochs, [-line[part]["elbo"] for line in lines], color=colour, label=part)
            right.plot(epochs, [line[part]["kl"] for line in lines], color=colour, label=part)
        low = min(-line[part]["elbo"] for line in lines for part in ("train", "valid"))
        late = [-line["valid"]["elbo"] for line in lines[len(lines) // 10 :]]
        left.set_ylim(low - 0.05 * (max(late) - low) - 0.1, max(late) + 0.1)
        for axes, name in ((left, "negative ELBO, nats"), (right, "KL divergence, nats")):
            axes.set_xlabel("epoch")
            axes.set_ylabel(name)
        left.legend(loc="upper right")
    return figure


@torch.no_grad()
def plot_posterior(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    extent: float | None = None,
    points: int = 120,
) -> Any:
    """Contours of single images' posteriors, latent size 2: the flow's over the exact ones.

    The exact posterior is the model's joint density on a grid, normalised there; areas hold 50 %,
    90 % and 99 % of it, lines of the approximation's.

    Args:
        vae: A VAE with ``latent_dim=2``.
        x: A few images.
        y: Their labels.
        extent: Half the side of the square; from the draws if None.
        points: Points of the grid on a side.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Architecture, plot_posterior
        >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
        >>> x = torch.bernoulli(torch.full((3, 4, 4), 0.5))
        >>> len(plot_posterior(vae, x, points=20).axes)
        3
    """
    if vae.latent_dim != 2:
        raise OptionError(f"plot_posterior needs latent_dim=2; got {vae.latent_dim}.")
    plt = pyplot()
    posterior = vae.encode(x, y)
    if extent is None:
        draws = posterior.draw(200, generator=stream(0, 4, device=x.device)).z
        extent = max(3.0, 1.2 * float(draws.abs().max()))
    axis = torch.linspace(-extent, extent, points, device=x.device, dtype=posterior.loc.dtype)
    across, up = torch.meshgrid(axis, axis, indexing="xy")
    grid = torch.stack([across, up], -1).reshape(-1, 1, 2).expand(-1, len(x), 2)
    c = vae.condition(y, x)
    log_p = vae.likelihood.log_prob(vae.decode(grid, c), x) + vae.prior_log_prob(grid, c)
    exact = torch.softmax(log_p, 0).T.reshape(len(x), points, points).cpu().double().numpy()
    log_q = torch.softmax(posterior.log_prob(grid), 0).T
    ours = log_q.reshape(len(x), points, points).cpu().double().numpy()
    ticks = axis.cpu().numpy()
    columns = min(len(x), 4)
    rows = math.ceil(len(x) / columns)
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(
            rows, columns, figsize=(2.1 * columns + 0.3, 2.1 * rows + 0.4),
            sharex=True, sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for axes, true, approximate in zip(all_axes.flat, exact, ours):
            heights = levels_holding(true, _MASSES)
            axes.contourf(
                ticks, ticks, true, [*heights, 1.01 * true.max()],
                colors=["#e4e7ec", "#ccd2da", REFERENCE][-len(heights):],
            )  # fmt: skip
            axes.contour(
                ticks, ticks, approximate, levels_holding(approximate, _MASSES),
                colors=FIT, linewidths=1.1,
            )  # fmt: skip
            axes.set_aspect("equal")
        for axes in list(all_axes.flat)[len(x) :]:
            axes.remove()
        figure.suptitle("exact posterior (areas) and q (lines)", x=0.02, ha="left", color=GREY)
    return figure
