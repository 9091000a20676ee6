"""Directions in which a posterior is long or narrow, for a Gaussian of many latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.recipe import LOW_RANK
from pyro_nfvi._gaussian_vi.target import Target


@dataclass(frozen=True)
class LowRankGaussian:
    r"""The Gaussian of :math:`\mu + \sigma \odot (x + U(c \odot U^\top x))`, x diagonal.

    Attributes:
        loc: :math:`\mu`, ``(D,)``.
        scale: :math:`\sigma`, ``(D,)``.
        directions: U ``(D, R)``, orthonormal columns.
        stretch: c ``(R,)``.
        inner_loc: Mean of x ``(D,)``.
        inner_scale: Standard deviations of x ``(D,)``.
        bound: Its evidence lower bound in nats.
        bound_se: Standard error of that.
    """

    loc: Tensor
    scale: Tensor
    directions: Tensor
    stretch: Tensor
    inner_loc: Tensor
    inner_scale: Tensor
    bound: float
    bound_se: float


def add_directions(
    target: Target,
    loc: Tensor,
    scale: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> LowRankGaussian | None:
    r"""Give a diagonal Gaussian the directions in which the density is far from diagonal.

    With :math:`H = -E_q[\sigma \nabla^2 \log p\, \sigma]`, the mean curvature in units of the sds,
    a Gaussian has the covariance :math:`\sigma H^{-1} \sigma`. Lanczos' recursion finds the
    eigenvalues of H that are farthest from the middle one :math:`\bar\lambda`, from products
    :math:`Hv` that are differences of scores; each becomes a direction with stretch
    :math:`(\lambda/\bar\lambda)^{-1/2} - 1`, and :math:`\sigma` grows by
    :math:`\bar\lambda^{-1/2}`. The diagonal is then fitted once more, inside of these.

    Args:
        target: The density.
        loc: Mean of the diagonal Gaussian ``(D,)``.
        scale: Its standard deviations ``(D,)``.
        generator: Source of the noise.

    Returns:
        None where no direction stands out, where scores are not finite, or where the bound rises
        by less than 5 nats.

    Cost:
        At most 96 calls of the density with 32 rows and 150 with 32 to 128; O(96^2 D) besides.

    Source: Lanczos 1950 with full reorthogonalisation; products of the Hessian from scores as in
    Pearlmutter 1994, section 2.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.low_rank_gaussian import add_directions
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> along = torch.full((300,), 300 ** -0.5, dtype=torch.float64)
        >>> def log_density(z):  # sd 0.01 along one direction, 1 across
        ...     return -0.5 * z.square().sum(-1) - 4999.5 * (z @ along).square()
        >>> target = Target(log_density, along)
        >>> found = add_directions(target, 0 * along, torch.ones_like(along))
        >>> len(found.stretch), round(float(found.stretch[0]), 2)
        (1, -0.99)
    """
    loc, scale = loc.double(), scale.double()
    found = _spikes(target, loc, scale, generator)
    if found is None:
        return None
    directions, stretch, most = found
    scale = scale * most

    def outward(x: Tensor) -> Tensor:
        return loc + scale * (x + ((x @ directions) * stretch) @ directions.mT)

    ladj = float(scale.log().sum() + stretch.log1p().sum())

    def inside(x: Tensor) -> Tensor:
        return target.log_density(outward(x).to(target.dtype)).double() + ladj

    inner = Target(inside, loc, budget=target.budget, tick=target.tick)
    unit = Normals.around(torch.zeros_like(loc)[None], 1.0, diagonal=True)
    fitted, _ = natural_gradient_ascent(
        inner, unit, num_steps=LOW_RANK.refit_steps, generator=generator
    )
    pair = Normals(torch.cat([unit.loc, fitted.loc]), torch.cat([unit.factor, fitted.factor]))
    bounds, errors = pair.bounds(inner, LOW_RANK.compared_draws, generator)
    best = int(bounds.argmax())
    before, error = Normals(loc[None], scale[None] / most).bounds(
        target, LOW_RANK.compared_draws, generator
    )
    if not bounds[best] > before[0] + LOW_RANK.least_gain + 2 * (error[0] + errors[best]):
        return None
    return LowRankGaussian(
        loc, scale, directions, stretch, pair.loc[best], pair.factor[best],
        float(bounds[best]), float(errors[best]),
    )  # fmt: skip


def _spikes(
    target: Target, loc: Tensor, scale: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Eigenvectors of the mean curvature far from most others, their stretches, and that of most.

    A narrow direction makes every coordinate of the best diagonal Gaussian narrow, so that most
    eigenvalues are below 1.
    """
    dim = len(loc)
    half = torch.randn(LOW_RANK.draws, dim, generator=generator, dtype=loc.dtype, device=loc.device)
    places = torch.cat([half, -half])

    def curved(v: Tensor) -> Tensor | None:
        ends = torch.stack([places + LOW_RANK.difference * v, places - LOW_RANK.difference * v])
        _, score, ok = target(loc + scale * ends)
        both = ok.all(0)
        if not bool(both.any()):
            return None
        change = scale * (score[0] - score[1])[both].mean(0)
        return -change / (2 * LOW_RANK.difference)

    steps = min(dim, LOW_RANK.lanczos_steps)
    start = torch.randn(dim, generator=generator, dtype=loc.dtype, device=loc.device)
    basis = [start / start.norm()]
    diagonal, beside = [], []
    for _ in range(steps):
        if target.budget.over():
            return None
        product = curved(basis[-1])
        if product is None or not bool(torch.isfinite(product).all()):
            return None
        diagonal.append(float(product @ basis[-1]))
        known = torch.stack(basis)
        # Twice: what rounding leaves of the known directions would come back as copies.
        for _ in range(2):
            product = product - (known @ product) @ known
        size = float(product.norm())
        beside.append(size)
        if size < 1e-8 * max(map(abs, diagonal)):
            break
        basis.append(product / size)
    count = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=loc.dtype))
    off = torch.tensor(beside[: count - 1], dtype=loc.dtype)
    values, vectors = torch.linalg.eigh(matrix + torch.diag(off, 1) + torch.diag(off, -1))
    error = beside[-1] * vectors[-1].abs()
    # The start vector's share in each is its share of the spectrum (Gauss quadrature).
    middle = values[int((vectors[0].square().cumsum(0) < 0.5).sum())]
    if not middle > 0:
        return None
    away = (values.clamp_min(1e-300) / middle).log().abs()
    sure = (
        (values > 0)
        & (error < LOW_RANK.eigenvalue_error * values)
        & (away > math.log(LOW_RANK.ratio))
    )
    order = away.masked_fill(~sure, -1.0).argsort(descending=True)
    taken = order[: min(LOW_RANK.most_directions, int(sure.sum()))]
    if not len(taken):
        return None
    directions = torch.stack(basis[:count], -1) @ vectors[:, taken].to(loc)
    return directions, (values[taken] / middle).to(loc).rsqrt() - 1, middle.to(loc).rsqrt()
