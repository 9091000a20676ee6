"""Natural-gradient ascent of the bound of a Gaussian, in its own coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import NATURAL_GRADIENT
from pyro_nfvi._gaussian_vi.target import Target


def natural_gradient_ascent(
    target: Target,
    start: Normals,
    *,
    num_steps: int = 300,
    num_particles: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Normals, Tensor]:
    r"""Raise the evidence lower bound of each Gaussian by whitened path gradients.

    With :math:`z = m + L\varepsilon` and :math:`g = \nabla\log p(z)`, the whitened path gradient
    :math:`G = L^\top g + \varepsilon` is zero for every draw once the Gaussian is the target. A
    step is

    .. math::
        m \leftarrow m + \eta L\,\overline{G}, \qquad
        L \leftarrow L\,\bigl(I + \eta\,\mathrm{tril}\,\overline{G\varepsilon^\top}\bigr)

    (the diagonal as an exponential; for Gaussians without correlations, the diagonal alone).
    Steps do not change under affine maps of the coordinates: condition numbers of 1e8 take no
    more of them. Both are limited to a trust region of radius :math:`\sqrt D`, which grows while
    the mean keeps its direction. The rate :math:`\eta = \min(0.1, 0.5/(1+\sqrt{D/B})^2)` keeps
    the noise of B draws stable; it falls by a cosine in the second half.

    A Gaussian at half of whose draws the density cannot be evaluated shrinks to half its width.

    Args:
        target: The density.
        start: R Gaussians; they move side by side, in one call of the density for each step.
        num_steps: Steps.
        num_particles: Draws B for each Gaussian and step; ``max(32, min(D, 128))`` by default.
        generator: Source of the noise.

    Returns:
        The Gaussians, and the bound at each step ``(num_steps, R)`` in nats, NaN where no draw
        could be evaluated; fewer steps where the target's budget was spent.

    Cost:
        ``num_steps * R * B`` gradients, and O(R (B + D) D^2) a step for the rest; O(R B D)
        without correlations.

    Source: path gradients of Roeder, Wu and Duvenaud 2017, arXiv:1703.09194; natural gradients
    of a Cholesky factor, Tan 2021, arXiv:2109.00375.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(2, dtype=torch.float64)
        >>> target = Target(lambda z: -0.5 * ((z - 3.0) / 1e-3).square().sum(-1), x)
        >>> found, bounds = natural_gradient_ascent(target, Normals.around(torch.zeros(1, 2), 1.0))
        >>> bool((found.loc - 3).abs().max() < 1e-4)
        True
    """
    now, dim = start, start.dim
    recipe = NATURAL_GRADIENT
    most = min(dim, recipe.most_particles)
    rows = max(recipe.fewest_particles, most) if num_particles is None else num_particles
    # A diagonal's gradient is not a matrix, whose noise grows with D / B.
    noise = math.sqrt(dim / rows) if start.is_full else 0.0
    rate = min(recipe.rate, recipe.noise_rate / (1 + noise) ** 2)
    reach, before = torch.ones_like(start.loc[:, :1]), torch.zeros_like(start.loc)
    bounds = []
    for step in range(num_steps):
        if step and target.budget.over():
            break
        eps = now.noise(rows, generator)
        log_p, score, ok = target(now.points(eps))
        log_w, path = log_p - now.log_q(eps), now.pull(score) + eps
        whole = bool(ok.all())
        if whole:  # as a rule: no row is left out
            bounds.append(log_w.mean(-1))
            mean = path.mean(1)
            share: Tensor | float = 1 / max(1, rows - 1)
        else:
            good = ok.sum(-1)
            bounds.append(torch.where(ok, log_w, torch.zeros_like(log_w)).sum(-1) / good)
            weight = ok.unsqueeze(-1) / good.clamp_min(1)[:, None, None]
            mean = (weight * path).sum(1)
            share = weight * (good / (good - 1).clamp_min(1))[:, None, None]
        # Far from the target all draws pull the same way: without their mean, that is no noise.
        apart = share * (path - mean.unsqueeze(1))
        turn = apart.mT @ eps if now.is_full else (apart * eps).sum(1)
        # Steps that keep their direction grow: the way to the target may be thousands of sds.
        ahead = torch.nn.functional.normalize(mean, dim=-1)
        steady = (ahead * before).sum(-1, keepdim=True) > recipe.steady_cosine
        reach = torch.where(steady, recipe.growth * reach, (reach / recipe.growth**2).clamp_min(1))
        before = ahead
        moved = _moved(now, mean, turn, rate * _factor(step, num_steps), reach)
        now = moved if whole else moved.where(2 * good >= rows, now.shrunk())
    return now, torch.stack(bounds)


def _moved(now: Normals, step: Tensor, turn: Tensor, eta: float, reach: Tensor) -> Normals:
    """One step of size ``eta``, within a trust region in each Gaussian's own coordinates."""
    radius = math.sqrt(now.dim)
    step = eta * step / (step.norm(dim=-1, keepdim=True) / (reach * radius)).clamp_min(1)
    turn = turn.tril() if now.is_full else turn
    length = turn.flatten(1).norm(dim=-1).view((-1,) + (1,) * (turn.dim() - 1))
    turn = eta * turn / (length / radius).clamp_min(1)
    loc = now.loc + now.stretch(step.unsqueeze(1)).squeeze(1)
    if not now.is_full:
        return Normals(loc, now.factor * turn.exp())
    diagonal = torch.diag_embed(turn.diagonal(dim1=-2, dim2=-1).exp())
    return Normals(loc, now.factor @ (turn.tril(-1) + diagonal))


def _factor(step: int, num_steps: int) -> float:
    half = num_steps // 2
    if step < half:
        return 1.0
    share = (step - half) / max(1, num_steps - half)
    end = NATURAL_GRADIENT.final_rate
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))
