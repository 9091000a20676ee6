"""Laplace's approximation: a Gaussian at the highest point of a density, as wide as its top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.curvature import ascend, hessians, newton
from pyro_nfvi._gaussian_vi.recipe import BASELINES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import WeightError


@dataclass(frozen=True)
class Laplace:
    """Laplace's approximation.

    Attributes:
        loc: The highest point that was found ``(D,)``.
        factor: Cholesky factor of the covariance ``(D, D)``.
        height: Log density there, in nats.
        steps: Iterations of the ascent.
    """

    loc: Tensor
    factor: Tensor
    height: float
    steps: int


def laplace(target: Target, log_density: Callable[[Tensor], Tensor], start: Tensor) -> Laplace:
    r"""Fit :math:`N(\hat z, (-\nabla^2 \log p(\hat z))^{-1})` at the highest point.

    L-BFGS, then Newton steps as long as they rise.

    Args:
        target: The density.
        log_density: The same, differentiable twice as a rule.
        start: Where the ascent begins ``(D,)``.

    Raises:
        WeightError: The start cannot be scored, or the density does not fall in all directions.

    Source: Tierney and Kadane 1986, JASA 81, section 2.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> sd = torch.tensor([1.0, 3.0])
        >>> log_p = lambda z: -0.5 * ((z - 2) / sd).square().sum(-1)
        >>> found = laplace(Target(log_p, sd), log_p, torch.zeros(2))
        >>> [round(x, 3) for x in found.factor.diagonal().tolist()]
        [1.0, 3.0]
    """

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        log_p, score, _ = target(point[None])
        return log_p[0].double(), score[0].double()

    path = ascend(evaluate, start, BASELINES.ascent_steps)
    if not path:
        raise WeightError("The density cannot be evaluated where the ascent begins.")

    def minus_hessian(point: Tensor) -> Tensor:
        return -hessians(target, log_density, point[None])[0]

    loc, precision, height = newton(evaluate, minus_hessian, path[-1])
    return Laplace(loc, covariance_factor(precision), height, len(path) - 1)


def covariance_factor(precision: Tensor) -> Tensor:
    """Return the Cholesky factor of the inverse of a precision matrix.

    Raises:
        WeightError: The matrix is not positive definite; it names the coordinate, by its number,
            along which the density does not fall.
    """
    values, vectors = torch.linalg.eigh(precision)
    if not float(values[0]) > BASELINES.flat * float(values[-1].abs()):
        raise FlatTopError(int(vectors[:, 0].abs().argmax()))
    factor, failed = torch.linalg.cholesky_ex((vectors / values) @ vectors.mT)
    if int(failed):
        raise FlatTopError(int(vectors[:, 0].abs().argmax()))
    return factor


class FlatTopError(WeightError):
    """The density does not fall from its highest point in all directions.

    Args:
        place: The coordinate along which it does not.
    """

    def __init__(self, place: int) -> None:
        super().__init__(f"The density does not fall along coordinate {place} at its top.")
        self.place = place
