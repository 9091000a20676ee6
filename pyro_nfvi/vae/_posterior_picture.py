"""A picture of posteriors in two dimensions: the exact one of single images, and the flow's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi._random import seeded, stream
from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots._style import FIT, GREY, REFERENCE, drawing, levels_holding
from pyro_nfvi.vae._memory_tiles import numbers_per_row, rows_at_once
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import FIGURES
from pyro_nfvi.vae._recipe import POSTERIOR_PICTURE as PICTURE


@dataclass(frozen=True)
class _Window:
    """A square of the latent space."""

    across: float
    up: float
    half: float

    def grid(self, points: int, like: Tensor) -> Tensor:
        """Points ``(points**2, 2)``, row by row upwards."""
        step = torch.linspace(-self.half, self.half, points, device=like.device, dtype=like.dtype)
        across, up = torch.meshgrid(self.across + step, self.up + step, indexing="xy")
        return torch.stack([across, up], -1).reshape(-1, 2)


@dataclass(frozen=True)
class _Scene:
    """Images and what is needed to score latent points under them."""

    vae: FlowVAE
    x: Tensor
    y: Tensor | None
    c: Tensor | None
    draws: np.ndarray  # of q, (S, B, 2)

    def log_joint(self, z: Tensor, images: slice) -> Tensor:
        """Log of prior times likelihood at points ``(T, 2)``, ``(T, b)``; labels are of the first.

        Tiles bound the memory; images are scored one after the other, from one run of the decoder.
        """
        x, c = self.x[images], None if self.c is None else self.c[images][:1]
        found = []
        for piece in z.unsqueeze(1).split(rows_at_once(self.vae, x, c)):
            params, prior = self.vae.decode(piece, c), self.vae.prior_log_prob(piece, c)
            scores = [self.vae.likelihood.log_prob(params, one) for one in x.split(1)]
            found.append(torch.cat(scores, 1) + prior)
        return torch.cat(found)

    def exact(self, window: _Window, points: int, image: int) -> np.ndarray:
        """Posterior of one image on the grid of a window, normalised there."""
        z = window.grid(points, _like(self.vae))
        return _mass(self.log_joint(z, slice(image, image + 1))[:, 0], points)

    def approximate(self, window: _Window, points: int, image: int) -> np.ndarray:
        """q of one image on the grid of a window, normalised there."""
        rows = slice(image, image + 1)
        posterior = self.vae.encode(self.x[rows], None if self.y is None else self.y[rows])
        log_q = posterior.log_prob(window.grid(points, posterior.loc).unsqueeze(1))
        return _mass(log_q[:, 0], points)


def _like(vae: FlowVAE) -> Tensor:
    return next(vae.parameters(), torch.empty(()))


def _mass(log_p: Tensor, points: int) -> np.ndarray:
    clean = log_p.double().nan_to_num(nan=-torch.inf)
    return torch.softmax(clean, 0).reshape(points, points).cpu().numpy()


@torch.no_grad()
def plot_posterior(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    extent: float | None = None,
    points: int = 120,
    panels: int | None = None,
) -> Any:
    """Contours of single images' posteriors, latent size 2: the flow's over the exact ones.

    The exact posterior is the model's joint density on a grid, normalised there; areas hold 50 %,
    90 % and 99 % of it, lines of the approximation's. Each panel shows the part of the latent space
    where its own posterior and approximation are: mind the numbers at the axes.

    Args:
        vae: A VAE with ``latent_dim=2``.
        x: Images.
        y: Their labels.
        extent: Half the side of every panel; None: as far as each posterior reaches.
        points: Points of a panel's grid on a side; fewer, and interpolated, where the decoder is
            so large that the picture would take minutes.
        panels: Draw at most so many images, those whose exact posterior is the least
            Gaussian (by its negentropy); fewer with a large decoder. None draws all.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import plot_posterior
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
        >>> x = torch.bernoulli(torch.full((3, 4, 4), 0.5))
        >>> len(plot_posterior(vae, x, points=20).axes)
        3
    """
    if vae.latent_dim != 2:
        raise OptionError(f"plot_posterior needs latent_dim=2; got {vae.latent_dim}.")
    for name, value, least in (("points", points, 4), ("panels", panels, 1)):
        if value is not None and value < least:
            raise OptionError(f"plot_posterior needs {name} of at least {least}; got {value}.")
    vae.check(x)
    with evaluation(vae), seeded(0, "vae nets"):  # one model has one picture
        return _picture(vae, x, y, extent, points, panels)


def _picture(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None,
    extent: float | None,
    points: int,
    panels: int | None,
) -> Any:
    plan = _afford(vae, x, y, panels, points)
    chosen, count = plan.scanned, plan.shown
    x, y = x[:chosen], None if y is None else y[:chosen]
    # One model has one picture: the seed is a constant.
    drawn = (
        vae.encode(x, y)
        .draw(PICTURE.draws, generator=stream(0, "posterior picture", device=x.device))
        .z
    )
    scene = _Scene(vae, x, y, vae.condition(y, x), drawn.double().cpu().numpy())
    windows, bent = _look(scene, plan)
    shown = list(range(len(x)))
    if panels is not None:
        shown = sorted(sorted(shown, key=lambda i: -bent[i])[:count])
    if extent is not None:
        windows = [_Window(one.across, one.up, extent) for one in windows]
    title = "exact posterior (areas) and q (lines)"
    if panels is not None and count < chosen:
        title += f": the {count} least Gaussian of the first {chosen} images"
    return _draw(scene, windows, shown, plan.side, points, title)


@dataclass(frozen=True)
class _Plan:
    """Points on a side of the wide square, the close look and a panel; images looked at, drawn."""

    wide: int
    close: int
    side: int
    scanned: int
    shown: int


def _afford(vae: FlowVAE, x: Tensor, y: Tensor | None, panels: int | None, points: int) -> _Plan:
    """Sizes of grids that take bearable time: a third of the work for each of the three grids."""
    c = vae.condition(None if y is None else y[:1], x[:1])
    with FlopCounterMode(display=False) as counter:
        vae.decode(_like(vae).new_zeros(1, 2), c)
    scoring = PICTURE.per_number * math.prod(x.shape[1:]) * vae.likelihood.num_params
    both = scoring + counter.get_total_flops() + PICTURE.per_number * numbers_per_row(vae, x, c)
    rows, least = PICTURE.work / 3 / both, PICTURE.least_points
    shown = len(x) if panels is None else min(panels, len(x), max(1, int(rows / least**2)))
    close = max(least, min(PICTURE.close_points, math.isqrt(int(rows / shown))))
    scanned = len(x) if panels is None else min(len(x), max(shown, int(rows / close**2)))
    # With labels each image has its own decoder, as it were; without, the grid is decoded once.
    each = scoring if c is None else both
    wide = max(
        least,
        min(PICTURE.wide_points, math.isqrt(int(PICTURE.work / 3 / (both + scanned * each)))),
    )
    side = min(points, max(least, math.isqrt(int(rows / shown))))
    return _Plan(wide, close, side, scanned, shown)


def _look(scene: _Scene, plan: _Plan) -> tuple[list[_Window], list[float]]:
    """Find where each posterior is, and how far from a Gaussian: wide first, then closely."""
    wide = _Window(
        0.0, 0.0, max(PICTURE.prior_reach, PICTURE.wide_margin * float(np.abs(scene.draws).max()))
    )
    z = wide.grid(plan.wide, _like(scene.vae))
    count = len(scene.x)
    if scene.c is None:
        rough = scene.log_joint(z, slice(0, count))
    else:
        rough = torch.cat([scene.log_joint(z, slice(i, i + 1)) for i in range(count)], 1)
    windows, bent = [], []
    for i in range(count):
        near = _around(_mass(rough[:, i], plan.wide), wide, scene.draws[:, i])
        mass = scene.exact(near, plan.close, i)
        bent.append(_negentropy(mass, near))
        windows.append(_around(mass, near, scene.draws[:, i]))
    return windows, bent


def _around(mass: np.ndarray, window: _Window, draws: np.ndarray) -> _Window:
    """The square around the bulk of a mass on a window's grid and of draws from q."""
    step = 2 * window.half / (len(mass) - 1)
    rows, columns = np.nonzero(mass >= levels_holding(mass, (PICTURE.inside,))[0])
    margin = PICTURE.margin_cells * step
    low = np.array([columns.min(), rows.min()]) * step - window.half - margin
    high = np.array([columns.max(), rows.max()]) * step - window.half + margin
    middle = np.array([window.across, window.up])
    ends = np.quantile(draws, [PICTURE.tail, 1 - PICTURE.tail], axis=0)
    low, high = np.minimum(low + middle, ends[0]), np.maximum(high + middle, ends[1])
    across, up = (low + high) / 2
    return _Window(float(across), float(up), float(PICTURE.panel_half * (high - low).max()))


def _negentropy(mass: np.ndarray, window: _Window) -> float:
    """KL divergence to the Gaussian of the same mean and covariance, in nats."""
    step = 2 * window.half / (len(mass) - 1)
    places = np.arange(len(mass)) * step
    up, across = np.meshgrid(places, places, indexing="ij")
    points, weights = np.stack([across.ravel(), up.ravel()]), mass.ravel()
    # A cell has a width of its own: without it a posterior in one cell had no Gaussian.
    covariance = np.cov(points, aweights=weights, ddof=0) + np.eye(2) * step**2 / 12  # of a square
    inside = weights[weights > 0]
    entropy = float(-(inside * np.log(inside / step**2)).sum())
    return 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * covariance)) - entropy


def _finer(mass: np.ndarray, points: int) -> np.ndarray:
    """Interpolate a density on a rough grid; its logarithm is the smoother one."""
    if len(mass) >= points:
        return mass
    rough = torch.from_numpy(np.log(np.maximum(mass, FIGURES.no_density)))[None, None]
    fine = F.interpolate(rough, (points, points), mode="bicubic", align_corners=True)
    return torch.softmax(fine.flatten(), 0).reshape(points, points).numpy()


def _draw(
    scene: _Scene,
    windows: list[_Window],
    shown: list[int],
    side: int,
    points: int,
    title: str,
) -> Any:
    columns = min(len(shown), FIGURES.panel_columns)
    rows = math.ceil(len(shown) / columns)
    (width, height), (beside, above) = FIGURES.panel, FIGURES.panel_room
    ticks, small, large = FIGURES.letters
    with drawing(
        rows,
        columns,
        style={"xtick.labelsize": ticks, "ytick.labelsize": ticks},
        figsize=(width * columns + beside, height * rows + above),
        squeeze=False,
    ) as (figure, all_axes):
        for axes, i in zip(all_axes.flat, shown, strict=False):
            true = _finer(scene.exact(windows[i], side, i), points)
            _panel(axes, windows[i], true, scene.approximate(windows[i], points, i))
            axes.set_title(f"image {i}", loc="left", fontsize=small, color=GREY)
        for axes in list(all_axes.flat)[len(shown) :]:
            axes.remove()
        figure.suptitle(title, x=0.02, ha="left", color=GREY, fontsize=large)
    return figure


def _panel(axes: Any, window: _Window, true: np.ndarray, ours: np.ndarray) -> None:
    step = np.linspace(-window.half, window.half, len(true))
    places = window.across + step, window.up + step
    heights = levels_holding(true, PICTURE.masses)
    axes.contourf(
        *places, true, [*heights, 1.01 * true.max()],
        colors=["#e4e7ec", "#ccd2da", REFERENCE][-len(heights):],
    )  # fmt: skip
    axes.contour(
        *places, ours, levels_holding(ours, PICTURE.masses), colors=FIT, linewidths=FIGURES.contour
    )
    axes.set_aspect("equal")
    axes.locator_params(nbins=4)
