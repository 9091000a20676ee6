"""Medians, quantiles and means of a guide, from one fixed set of base points."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, StudentT
from torch.quasirandom import SobolEngine

from pyro_nfvi._random import seeded, stream
from pyro_nfvi.distributions._bases import Base
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._guide_draws import chunk_rows
from pyro_nfvi.guides._recipe import GUIDES

#: Levels one standard deviation of a normal below the median, the median, and one above.
ONE_SD = tuple(0.5 * math.erfc(-sd * math.sqrt(0.5)) for sd in (-1, 0, 1))
#: Kinds of base without a quantile function that are symmetric about their ``loc``.
_SYMMETRIC = (MultivariateNormal, StudentT)


def base_points(like: Tensor, base: Distribution | Base | None = None) -> Tensor:
    """Return 4097 standard normal points ``(4097, D)``: symmetric, with 0 among them.

    They are the same at every call and use no global random state: scrambled Sobol points
    through the normal quantile function, each with its mirror image, so that the median of any
    monotone image is the image of 0. Another base goes through its own quantile function; if it
    has none, fixed draws stand in, with mirror images and centre where it is known to be symmetric.

    Args:
        like: A vector of size D with the dtype and device of the points.
        base: Another base distribution.
    """
    dim = len(like)
    if base is not None:
        return _points_of(base, dim).to(like)
    half = torch.special.ndtri(_uniform(dim)).to(device=like.device, dtype=like.dtype)
    return torch.cat([half, torch.zeros_like(half[:1]), -half])


def _uniform(dim: int) -> Tensor:
    if dim <= SobolEngine.MAXDIM:
        engine = SobolEngine(dim, scramble=True, seed=GUIDES.seed)
        uniform = engine.draw(GUIDES.pairs, dtype=torch.float64)
    else:
        noise = stream(GUIDES.seed, "quantiles")
        uniform = torch.rand(GUIDES.pairs, dim, dtype=torch.float64, generator=noise)
    return uniform.clamp(1e-9, 1 - 1e-9)


def _points_of(base: Distribution | Base, dim: int) -> Tensor:
    if isinstance(base, Base):
        return _points_of_base(base)
    inner = base
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if tuple(inner.batch_shape) == (dim,) and not inner.event_shape:
        # In single precision 1 - 1e-9 would be 1.
        half = _uniform(dim).clamp(1e-6, 1 - 1e-6).to(base.sample())
        try:
            return inner.icdf(torch.cat([half, torch.full_like(half[:1], 0.5), 1 - half]))
        except NotImplementedError:
            pass
    with seeded(GUIDES.seed, "quantiles"):
        draws = base.sample(torch.Size([2 * GUIDES.pairs + 1]))
    if not isinstance(inner, _SYMMETRIC):
        return draws
    half, centre = draws[: GUIDES.pairs], inner.loc.expand(1, dim)
    return torch.cat([half, centre, 2 * centre - half])


def _points_of_base(base: Base) -> Tensor:
    with seeded(GUIDES.seed, "quantiles"):
        draws = base.sample(2 * GUIDES.pairs + 1)
    if not base.symmetric:
        return draws
    # Held noise is centred at 0.
    half = draws[: GUIDES.pairs]
    return torch.cat([half, torch.zeros_like(half[:1]), -half])


def column_quantiles(points: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of each column: ``(n, D), (q,) -> (q, D)``, linear between order statistics."""
    ordered = points.sort(0).values
    rank = levels.clamp(0, 1) * (len(points) - 1)
    low = rank.floor().long().clamp_max(len(points) - 1)
    high = (low + 1).clamp_max(len(points) - 1)
    return torch.lerp(ordered[low], ordered[high], (rank - low).to(points.dtype).unsqueeze(-1))


def pushed_quantiles(points: Tensor, flow: Flow | None, outer: Flow, levels: Tensor) -> Tensor:
    """Quantiles of each coordinate of ``outer(flow(points))``: ``(q, D)``."""
    parts = []
    for part in points.split(chunk_rows(points.shape[-1])):
        inner = part if flow is None else flow(part)[0]
        parts.append(outer(inner)[0])
    return column_quantiles(torch.cat(parts), levels)
