"""Draws of a guide that reach into its tails, with the weights of the guide and of the posterior.

Two thousand draws of the guide cannot show what one in fifty thousand does to an sd, nor what lies
just beyond them. Wider base noise goes through the same flow: it follows the shape that the flow
has learnt, farther than the guide's own draws do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer._recipe import CALL_SIZES, MOMENTS
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks, score

#: The draws by how particles are evaluated: one by one, they would take too long.
MOMENT_ROWS = {"plate": MOMENTS.rows, "vmap": MOMENTS.rows, "loop": 0}


@dataclass(frozen=True, eq=False)
class ReachingDraws:
    """Points under a law wider than the guide, with normalised weights ``(N,)`` in float64.

    Attributes:
        z: Points ``(N, D)``.
        own: Weights of the guide, which undo the width.
        posterior: Weights of the posterior, Pareto-smoothed.
    """

    z: Tensor
    own: Tensor
    posterior: Tensor

    def resampled(self) -> Tensor:
        """As many points as draws of the posterior, by systematic resampling."""
        count = len(self.z)
        level = (torch.arange(count, dtype=torch.float64, device=self.z.device) + 0.5) / count
        place = torch.searchsorted(self.posterior.cumsum(0), level).clamp(max=count - 1)
        return self.z[place]


def reaching_draws(
    density: FlowDensity | NoiseDensity,
    log_joint: LogJoint,
    draws: WeighedDraws,
    seed: int,
    budget: Budget = UNLIMITED,
) -> ReachingDraws | None:
    r"""Draw from a guide with wide noise, and weigh the draws.

    Half of the noise is the guide's own. Of a quarter one coordinate is two or four times as wide;
    of the last quarter all are, by factors :math:`1 + c\sqrt{2/D}`. Guide and posterior are then
    weights of the same points, the guide's below 2 (a defensive mixture). Mixtures of guides give
    their own draws.

    Returns:
        The draws; None where they cannot be made or scored, where the budget is spent first, or
        where the posterior's weights say nothing.

    Cost:
        10,000 rows of the model, fewer where one holds many numbers.

    Source: importance sampling from a defensive mixture, Hesterberg 1995, Technometrics 37,
    section 2.
    """
    rows = min(MOMENTS.rows, CALL_SIZES.check // max(1, log_joint.size))
    alone = density.base is not None or log_joint.in_parts
    if not draws.exact or alone or rows < MOMENTS.fewest_effective:
        return None
    noise = stream(seed, "moments", device=draws.z.device)
    if not isinstance(density, FlowDensity):  # of which the noise is no map of the draws
        z, log_q = push_chunks(density, rows, lambda n: density.sample_base(n, generator=noise))
        log_width = torch.zeros(rows, dtype=torch.float64, device=z.device)
    else:
        z, log_q, log_width = _reach(density, rows, noise)
    log_p = score(log_joint, z, noise, budget, deterministic=False)[0].log_p
    if len(log_p) < len(z):
        return None
    log_w = (log_p - log_q).double() + log_width
    log_w = torch.where(log_w < torch.inf, log_w, torch.full_like(log_w, -torch.inf))
    try:
        weight = psis(log_w).log_weights.double().softmax(0)
    except WeightError:
        return None
    if 1 / float(weight.square().sum()) < MOMENTS.fewest_effective:
        return None
    return ReachingDraws(z, log_width.softmax(0), weight)


def _reach(
    density: FlowDensity, rows: int, noise: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from the guide with noise that reaches its tails.

    Returns:
        Points, the guide's log density there, and the log of its ratio to that of the draws.
    """
    like = density.sample_base(1)
    dim = like.shape[-1]
    eps = torch.randn(rows, dim, generator=noise, dtype=torch.float64, device=like.device)
    place = torch.randint(dim, (rows, 1), generator=noise, device=like.device)
    joint = [1 + excess * math.sqrt(2 / dim) for excess in MOMENTS.joint_excess]
    kinds = len(MOMENTS.widths) + len(joint)
    share, each = 0.5 / kinds, rows // (2 * kinds)
    scale = torch.ones_like(eps)
    ratio = torch.full_like(eps[:, 0], 0.5)
    for number, wide in enumerate(MOMENTS.widths):
        part = slice(number * each, (number + 1) * each)
        scale[part] = scale[part].scatter(-1, place[part], wide)
    for number, wide in enumerate(joint, start=len(MOMENTS.widths)):
        scale[number * each : (number + 1) * each] = wide
    eps = eps * scale
    for wide in MOMENTS.widths:
        exponent = 0.5 * eps.square() * (1 - 1 / wide**2) - math.log(wide * dim)
        ratio = ratio + share * torch.logsumexp(exponent, -1).exp()
    for wide in joint:
        exponent = 0.5 * eps.square().sum(-1) * (1 - 1 / wide**2) - dim * math.log(wide)
        ratio = ratio + share * exponent.exp()
    with torch.no_grad():
        parts = [density.push(part) for part in eps.to(like.dtype).split(4096)]
    z, log_q = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return z, log_q, -ratio.log()


def weighted_moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and sd of each column, and what each row adds to errors of the mean and of log sd."""
    weight = weight.unsqueeze(-1)
    mean = (weight * x).sum(0)
    apart = x - mean
    variance = (weight * apart.square()).sum(0)
    spread = weight * (apart.square() - variance) / (2 * variance).clamp_min(1e-300)
    return mean, variance.sqrt(), weight * apart, spread


def moved_columns(
    x: Tensor, weight: Tensor, own: Tensor, factor: float = MOMENTS.sd
) -> tuple[Tensor, Tensor, list[int]]:
    """Compare means and sds of columns under two sets of weights of the same rows.

    Most of their noise is common, so the standard error is that of the difference.

    Args:
        x: Numbers ``(N, D)``.
        weight: Weights ``(N,)`` that are right.
        own: Weights ``(N,)`` that are examined.
        factor: Factor on an sd from which on it is off.

    Returns:
        Shifts of the means in sds, logarithms of the ratios of sds, each ``(D,)``, and the columns
        that are off beyond noise, the worst first.
    """
    mean, sd, mean_terms, sd_terms = weighted_moments(x, weight / weight.sum())
    ours, width, own_terms, width_terms = weighted_moments(x, own / own.sum())
    shift, stretch = (ours - mean).abs() / sd, (width / sd).log()
    shift_error = (mean_terms - own_terms).square().sum(0).sqrt() / sd
    stretch_error = (sd_terms - width_terms).square().sum(0).sqrt()
    far = shift > (MOMENTS.errors * shift_error).clamp_min(MOMENTS.mean)
    wide = stretch.abs() > (MOMENTS.errors * stretch_error).clamp_min(math.log(factor))
    off = (far | wide) & torch.isfinite(sd) & (sd > 0)
    worst = torch.maximum(shift / MOMENTS.mean, stretch.abs() / math.log(factor))
    places = off.nonzero().squeeze(-1)
    order = worst[places].nan_to_num(torch.inf).argsort(descending=True)
    return shift, stretch, places[order].tolist()
