"""Pathfinder: the best Gaussian among those that L-BFGS meets on its way to a mode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.curvature import ascend
from pyro_nfvi._gaussian_vi.recipe import BASELINES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import WeightError


@dataclass(frozen=True)
class Path:
    """The best Gaussian of one path.

    Attributes:
        loc: Its mean ``(D,)``.
        factor: Cholesky factor of its covariance ``(D, D)``.
        bound: Its ELBO, from a few draws, in nats.
        place: Which iterate it belongs to.
        steps: Iterations of the path.
    """

    loc: Tensor
    factor: Tensor
    bound: float
    place: int
    steps: int


def pathfinder(target: Target, start: Tensor, generator: torch.Generator) -> Path:
    r"""Ascend from a start by L-BFGS, and keep the Gaussian with the highest ELBO on the way.

    At each iterate the inverse Hessian that L-BFGS has learnt is a covariance,

    .. math:: \Sigma = \mathrm{diag}(\alpha) + \beta\gamma\beta^\top, \qquad
        \mu = \theta + \Sigma\,\nabla \log p(\theta).

    Args:
        target: The density.
        start: Where the path begins ``(D,)``.
        generator: Source of the draws on which ELBOs are estimated.

    Cost:
        One gradient for each evaluation of a line search, and a few draws for each iterate.

    Raises:
        WeightError: The start cannot be scored, or no Gaussian of the path can.

    Source: Zhang, Carpenter, Gelman and Vehtari 2022, arXiv:2108.03782, algorithms 1, 3 and 4.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> from pyro_nfvi._random import stream
        >>> sd = torch.tensor([1.0, 3.0], dtype=torch.float64)
        >>> target = Target(lambda z: -0.5 * ((z - 2) / sd).square().sum(-1), sd)
        >>> found = pathfinder(target, -torch.ones(2), stream(0, "example"))
        >>> [round(x, 1) for x in found.loc.tolist()]
        [2.0, 2.0]
    """

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        log_p, score, _ = target(point[None])
        return log_p[0].double(), score[0].double()

    path = ascend(evaluate, start, BASELINES.ascent_steps)
    if len(path) < 2:
        raise WeightError("The density cannot be climbed from where the path begins.")
    gaussians = list(_gaussians(path))
    if not gaussians:
        raise WeightError("No iterate of the path has a curvature.")
    locs = torch.stack([loc for _, loc, _ in gaussians])
    factors = torch.stack([factor for _, _, factor in gaussians])
    num, dim, draws = len(locs), locs.shape[-1], BASELINES.path_draws
    noise = torch.randn(
        num, draws, dim, generator=generator, dtype=torch.float64, device=locs.device
    )
    points = locs.unsqueeze(1) + noise @ factors.mT
    log_q = (
        -0.5 * noise.square().sum(-1)
        - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        - 0.5 * dim * math.log(2 * math.pi)
    )
    log_p = target(points.reshape(-1, dim))[0].double().reshape(num, draws)
    bounds = (log_p - log_q).mean(-1)
    best = int(bounds.argmax())
    if not math.isfinite(float(bounds[best])):
        raise WeightError("No Gaussian of the path gives draws that can be scored.")
    place, loc, factor = gaussians[best]
    return Path(loc, factor, float(bounds[best]), place, len(path) - 1)


def _gaussians(path: list[tuple[Tensor, Tensor, float]]) -> list[tuple[int, Tensor, Tensor]]:
    """Gaussians of the iterates after the first: number, mean and factor of each."""
    found: list[tuple[int, Tensor, Tensor]] = []
    alpha = torch.ones_like(path[0][0])
    moves: list[Tensor] = []
    slopes: list[Tensor] = []
    for number in range(1, len(path)):
        (before, old, _), (theta, gradient, _) = path[number - 1], path[number]
        s, y = theta - before, old - gradient
        if float(s @ y) > BASELINES.curvature * float(y @ y):
            alpha = _diagonal(alpha, s, y)
            moves, slopes = [*moves, s][-BASELINES.history :], [*slopes, y][-BASELINES.history :]
        if not moves:
            continue
        covariance = _inverse_hessian(alpha, torch.stack(moves, -1), torch.stack(slopes, -1))
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            found.append((number, theta + covariance @ gradient, factor))
    return found


def _diagonal(alpha: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Update the diagonal of the inverse Hessian: Gilbert and Lemarechal 1989, equation 4.9."""
    a, b, c = (y * alpha * y).sum(), (y * s).sum(), (s * s / alpha).sum()
    return 1 / (a / (b * alpha) + y.square() / b - a * s.square() / (b * c * alpha.square()))


def _inverse_hessian(alpha: Tensor, moves: Tensor, slopes: Tensor) -> Tensor:
    """Return the inverse Hessian of L-BFGS from moves and slopes ``(D, J)``: ``(D, D)``."""
    product = (moves.mT @ slopes).triu()
    inverse = torch.linalg.solve_triangular(
        product, torch.eye(len(product)).to(product), upper=True
    )
    eta = product.diagonal()
    scaled = alpha.unsqueeze(-1) * slopes
    corner = inverse.mT @ (torch.diag(eta) + slopes.mT @ scaled) @ inverse
    gamma = torch.cat(
        [
            torch.cat([torch.zeros_like(corner), -inverse], -1),
            torch.cat([-inverse.mT, corner], -1),
        ]
    )
    beta = torch.cat([scaled, moves], -1)
    full = torch.diag(alpha) + beta @ gamma @ beta.mT
    return (full + full.mT) / 2
