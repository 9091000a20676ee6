"""Batch and match: a full-rank Gaussian whose scores match the target's."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import BATCH_AND_MATCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import ShapeError


def batch_and_match(
    target: Target,
    start: Normals,
    *,
    num_steps: int = 30,
    num_particles: int = 32,
    generator: torch.Generator | None = None,
) -> Normals:
    r"""Fit Gaussians by matching scores in closed form, step by step.

    Each step draws B points, and finds the Gaussian that minimises the score-based divergence to
    the target at them plus :math:`2/\lambda_t` times the KL divergence from the present one,
    with :math:`\lambda_t = BD/(1+t)`. It crosses bad scales in few steps; what it converges to
    is not the optimum of the evidence lower bound where the target is not Gaussian.

    A step whose matrices cannot be factored is not taken. A Gaussian at half of whose draws the
    density cannot be evaluated shrinks to half its width.

    Args:
        target: The density.
        start: R Gaussians, side by side.
        num_steps: Steps.
        num_particles: Draws B for each Gaussian and step.
        generator: Source of the noise.

    Cost:
        ``num_steps * R * B`` gradients, and O(R D^3) a step.

    Raises:
        ShapeError: Gaussians without correlations.

    Source: Cai et al. 2024, arXiv:2402.14758, algorithm 1; the square root in symmetric form.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.batch_and_match import batch_and_match
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(2, dtype=torch.float64)
        >>> target = Target(lambda z: -0.5 * ((z - 3.0) / 0.1).square().sum(-1), x)
        >>> found = batch_and_match(target, Normals.around(torch.zeros(1, 2), 1.0))
        >>> bool((found.loc - 3).abs().max() < 1e-3)
        True
    """
    if not start.is_full:
        raise ShapeError("batch_and_match fits covariances. Give it Gaussians with full factors.")
    now = start
    for step in range(num_steps):
        if step and target.budget.over():
            break
        points = now.points(now.noise(num_particles, generator))
        _, score, ok = target(points)
        regular = num_particles * start.dim / (1 + step)
        new, solved = _update(now, points, score, ok, regular)
        usable = 2 * ok.sum(-1) >= num_particles
        now = new.where(usable & solved, now.where(usable, now.shrunk()))
    return now


def _update(
    now: Normals, points: Tensor, score: Tensor, ok: Tensor, regular: float
) -> tuple[Normals, Tensor]:
    """One closed-form step: new Gaussians, and which of them exist."""
    loc, tril = now.loc, now.factor
    weight = (ok / ok.sum(-1, keepdim=True).clamp_min(1)).unsqueeze(-1)
    mean, mean_score = (weight * points).sum(1), (weight * score).sum(1)
    spread, spread_score = points - mean.unsqueeze(1), score - mean_score.unsqueeze(1)
    cov = spread.mT @ (weight * spread)
    cov_score = spread_score.mT @ (weight * spread_score)
    share = regular / (1 + regular)
    u = regular * cov_score + share * _outer(mean_score)
    v = tril @ tril.mT + regular * cov + share * _outer(loc - mean)
    root, failed = torch.linalg.cholesky_ex(v)
    middle = root.mT @ u @ root
    solved = (failed == 0) & torch.isfinite(middle).all(-1).all(-1)
    eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    middle = torch.where(solved[:, None, None], 0.5 * (middle + middle.mT), eye)
    values, vectors = torch.linalg.eigh(middle)
    # S = root E diag(2 / (1 + sqrt(1 + 4 values))) E^T root^T solves S U S + S = V.
    shrink = torch.sqrt(2 / (1 + torch.sqrt(1 + 4 * values.clamp_min(0))))
    half = root @ (vectors * shrink.unsqueeze(-2))
    new_cov = half @ half.mT
    jitter = (
        BATCH_AND_MATCH.jitter * new_cov.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * eye
    )
    new_tril, failed = torch.linalg.cholesky_ex(new_cov + jitter)
    pulled = (new_cov @ mean_score.unsqueeze(-1)).squeeze(-1)
    new_loc = loc / (1 + regular) + share * (pulled + mean)
    finite = torch.isfinite(new_tril).all(-1).all(-1) & torch.isfinite(new_loc).all(-1)
    return Normals(new_loc, new_tril), solved & (failed == 0) & finite


def _outer(vector: Tensor) -> Tensor:
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)
