"""DADVI: mean-field variational inference on fixed draws, with linear-response covariances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.curvature import ascend, hessians, newton
from pyro_nfvi._gaussian_vi.laplace import covariance_factor
from pyro_nfvi._gaussian_vi.recipe import BASELINES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import WeightError


@dataclass(frozen=True)
class Dadvi:
    """The optimum on fixed draws, and its response to linear perturbations.

    Attributes:
        loc: Means of the mean-field Gaussian ``(D,)``.
        scale: Its standard deviations ``(D,)``, which are too small where latents correlate.
        factor: Cholesky factor of the linear-response covariance ``(D, D)``.
        error: Standard error of each mean, from the draws being few ``(D,)``.
        steps: Iterations of the ascent.
    """

    loc: Tensor
    scale: Tensor
    factor: Tensor
    error: Tensor
    steps: int


def dadvi(
    target: Target,
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    generator: torch.Generator,
) -> Dadvi:
    r"""Maximise the ELBO of a mean-field Gaussian on fixed draws, and correct its covariance.

    .. math::
        \hat L(\mu, \xi) = \frac1M \sum_m \log p(\mu + e^{\xi} \odot z_m) + \sum_d \xi_d, \qquad
        \Sigma = \bigl[(-\nabla^2 \hat L)^{-1}\bigr]_{\mu\mu}

    The objective is a function without noise: L-BFGS, then Newton steps. Beyond the paper, half of
    the :math:`z_m` are the other half with the opposite sign, and where there are enough of them
    their covariance is made the identity, so that the ELBO of a Gaussian posterior is exact.

    Args:
        target: The density.
        log_density: The same, differentiable twice as a rule.
        start: Where the means begin ``(D,)``.
        generator: Source of the draws.

    Cost:
        M gradients for each evaluation; M D rows of the density for the covariance.

    Raises:
        WeightError: The start cannot be scored, or the optimum is none.

    Source: Giordano, Ingram and Broderick 2024, arXiv:2304.05527, sections 3 and 4.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> from pyro_nfvi._random import stream
        >>> precision = torch.tensor([[2.0, 1.5], [1.5, 2.0]], dtype=torch.float64)
        >>> log_p = lambda z: -0.5 * ((z @ precision) * z).sum(-1)
        >>> target = Target(log_p, precision)
        >>> noise = stream(0, "example")
        >>> found = dadvi(target, log_p, torch.ones(2), noise)
        >>> covariance = found.factor @ found.factor.mT
        >>> bool(torch.allclose(covariance, torch.linalg.inv(precision), atol=1e-6))
        True
    """
    dim = len(start)
    half = torch.randn(
        BASELINES.fixed_draws // 2, dim, generator=generator, dtype=torch.float64,
        device=start.device,
    )  # fmt: skip
    if len(half) >= dim:
        half = torch.linalg.qr(half)[0] * len(half) ** 0.5
    draws = torch.cat([half, -half])

    def points(eta: Tensor) -> Tensor:
        return eta[:dim] + eta[dim:].exp() * draws

    def each(eta: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of each draw's term, without the entropy."""
        log_p, score, _ = target(points(eta))
        score = score.double()
        return log_p.double(), torch.cat([score, score * eta[dim:].exp() * draws], -1)

    def evaluate(eta: Tensor) -> tuple[Tensor, Tensor]:
        log_p, slope = each(eta)
        gradient = slope.mean(0)
        gradient[dim:] += 1
        return log_p.mean() + eta[dim:].sum(), gradient

    eta = torch.cat([start.double(), torch.full_like(start.double(), BASELINES.first_log_scale)])
    path = ascend(evaluate, eta, BASELINES.ascent_steps)
    if not path:
        raise WeightError("The density cannot be evaluated around where the means begin.")

    def curvature(eta: Tensor) -> Tensor:
        """Minus the matrix of second derivatives of the objective ``(2D, 2D)``."""
        away = eta[dim:].exp() * draws
        bent = -hessians(target, log_density, points(eta))
        cross = (bent * away.unsqueeze(-2)).mean(0)
        scales = (away.unsqueeze(-1) * bent * away.unsqueeze(-2)).mean(0)
        slope = (away * target(points(eta))[1].double()).mean(0)
        scales = scales - torch.diag(slope)
        top = torch.cat([bent.mean(0), cross], -1)
        return torch.cat([top, torch.cat([cross.mT, scales], -1)])

    eta, matrix, _ = newton(evaluate, curvature, path[-1])
    whole = covariance_factor(matrix)
    inverse = whole @ whole.mT
    covariance = inverse[:dim, :dim]
    terms = each(eta)[1]
    spread = torch.cov((terms[: len(half)] + terms[len(half) :]).mT / 2).reshape(2 * dim, -1)
    noise = inverse @ (spread / len(half)) @ inverse
    return Dadvi(
        eta[:dim],
        eta[dim:].exp(),
        torch.linalg.cholesky(covariance),
        noise.diagonal()[:dim].clamp_min(0).sqrt(),
        len(path) - 1,
    )
