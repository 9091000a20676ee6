"""Curvature of a log density: matrices of second derivatives, and maxima by Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.recipe import BASELINES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.torch_optimizers import LBFGS
from pyro_nfvi.errors import WeightError


def hessians(target: Target, log_density: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    r"""Return :math:`\nabla^2 \log p` at rows ``(N, D)``: ``(N, D, D)``, in float64.

    By two backward passes of ``log_density``; by central differences of the gradient where it
    cannot be differentiated twice.

    Args:
        target: The density, for the gradients.
        log_density: The same, differentiable twice as a rule.
        z: Rows.

    Cost:
        N D rows of the density, in blocks.
    """
    num, dim = z.shape
    rows = z.repeat_interleave(dim, 0).to(target.dtype)
    units = torch.eye(dim, dtype=target.dtype, device=z.device).repeat(num, 1)
    block = max(1, BASELINES.hessian_rows)
    try:
        parts = []
        for part, unit in zip(rows.split(block), units.split(block)):
            with torch.enable_grad():
                point = part.detach().requires_grad_()
                (slope,) = torch.autograd.grad(log_density(point).sum(), point, create_graph=True)
                (bent,) = torch.autograd.grad((slope * unit).sum(), point)
            parts.append(bent.detach())
        found = torch.cat(parts).reshape(num, dim, dim).double()
    except (RuntimeError, NotImplementedError):  # an operation without a second derivative
        found = _by_differences(target, z)
    if not bool(torch.isfinite(found).all()):
        found = _by_differences(target, z)
    if not bool(torch.isfinite(found).all()):
        raise WeightError("The curvature of the density is not finite.")
    return (found + found.mT) / 2


def _by_differences(target: Target, z: Tensor) -> Tensor:
    num, dim = z.shape
    step = torch.finfo(target.dtype).eps ** (1 / 3) * z.abs().clamp_min(1)
    moves = torch.diag_embed(step)
    ahead = target((z.unsqueeze(1) + moves).reshape(-1, dim))[1]
    behind = target((z.unsqueeze(1) - moves).reshape(-1, dim))[1]
    slope = (ahead - behind).reshape(num, dim, dim).double()
    return slope / (2 * step.unsqueeze(-1))


def ascend(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, steps: int
) -> list[tuple[Tensor, Tensor, float]]:
    """Ascend by L-BFGS with line searches.

    Args:
        evaluate: Point ``(D,)`` to value and gradient, in float64; -inf where there is none.
        start: Where it begins.
        steps: Most iterations.

    Returns:
        The points that were accepted, with gradients and values, the first one included.
    """
    point = start.clone().double().requires_grad_()

    def descent() -> Tensor:
        value, gradient = evaluate(point.detach())
        point.grad = -gradient
        # A number that no line search takes.
        return -value if bool(torch.isfinite(value)) else torch.full_like(value, 1e30)

    optimizer = LBFGS(
        [point], lr=1.0, max_iter=1, history_size=BASELINES.history,
        line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    path: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(steps + 1):
        value, gradient = evaluate(point.detach())
        if not bool(torch.isfinite(value)):
            break
        here = point.detach().clone()
        if path:
            rise = float(value) - path[-1][2]
            if rise <= BASELINES.rise * max(1.0, abs(float(value))):
                if rise > 0:
                    path.append((here, gradient, float(value)))
                break
        path.append((here, gradient, float(value)))
        optimizer.step(descent)
    return path


def newton(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    precision: Callable[[Tensor], Tensor],
    end: tuple[Tensor, Tensor, float],
) -> tuple[Tensor, Tensor, float]:
    """Go on from the end of :func:`ascend` by Newton steps, as long as the value rises.

    Args:
        evaluate: Point ``(D,)`` to value and gradient.
        precision: Point to minus the matrix of second derivatives ``(D, D)``.
        end: Point, gradient and value where it begins.

    Returns:
        Point, precision there, and value. Where the precision is not positive definite no step
        is taken.
    """
    point, gradient, height = end
    matrix = precision(point)
    for _ in range(BASELINES.newton_steps):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            break
        moved = point + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        value, slope = evaluate(moved)
        if not float(value) >= height:
            break
        point, gradient, height = moved, slope, float(value)
        matrix = precision(point)
    return point, matrix, height
