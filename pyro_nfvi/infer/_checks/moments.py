"""Means and sds of what users see: those of the guide's own draws against weighted ones.

Two thousand draws cannot show what one draw in fifty thousand does to an sd, and a user may take a
million; nor what lies just beyond them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer._recipe import CALL_SIZES, MOMENTS
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks, score

#: The draws by how particles are evaluated: one by one, they would take too long.
MOMENT_ROWS = {"plate": MOMENTS.rows, "vmap": MOMENTS.rows, "loop": 0}


@dataclass(frozen=True)
class Moved:
    """A number whose mean or sd under the guide's draws is not that of the weighted ones.

    Attributes:
        name: The number.
        shift: How far the mean is off, in sds.
        stretch: The sd of the guide's draws over the weighted one.
    """

    name: str
    shift: float
    stretch: float


def moved_moments(
    density: FlowDensity | MixtureDensity,
    log_joint: LogJoint,
    draws: WeighedDraws,
    seed: int,
    *,
    heavy: tuple[str, ...] = (),
    budget: Budget = UNLIMITED,
) -> tuple[Moved, ...] | None:
    r"""Compare means and sds of all constrained values under the guide with weighted ones.

    Draws of the guide are made from base noise of which half has one coordinate two or four times
    as wide, with weights below 2 that undo it. They follow the shape that the flow has learnt, into
    tails where its own draws do not come: what rare draws do to an sd counts, and so does mass that
    the guide falls short of. The guide's moments are those of the weights that undo the width, the
    posterior's those of Pareto-smoothed importance weights on the same draws.

    Args:
        density: The guide's.
        log_joint: The model's.
        draws: The fit's draws.
        seed: Of the further draws.
        heavy: Numbers without a variance, which are left out.
        budget: Time.

    Returns:
        The numbers that are off beyond noise, the worst first; none where weights say nothing, and
        None where the budget is spent first.

    Cost:
        10,000 rows of the model, fewer where one holds many numbers.

    Source: importance sampling from a defensive mixture, Hesterberg 1995, Technometrics 37,
    section 2.
    """
    rows = min(MOMENTS.rows, CALL_SIZES.check // max(1, log_joint.size))
    alone = density.base is not None or log_joint.in_parts
    if not draws.exact or alone or rows < MOMENTS.fewest_effective:
        return ()
    noise = stream(seed, "moments", device=draws.z.device)
    if isinstance(density, MixtureDensity):
        z, log_q = push_chunks(density, rows, lambda n: density.sample_base(n, generator=noise))
        log_width = torch.zeros(rows, dtype=torch.float64, device=z.device)
    else:
        z, log_q, log_width = _reaching(density, rows, noise)
    log_p = score(log_joint, z, noise, budget, deterministic=False)[0].log_p
    if len(log_p) < len(z):
        return None
    log_w = (log_p - log_q).double() + log_width
    log_w = torch.where(log_w < torch.inf, log_w, torch.full_like(log_w, -torch.inf))
    try:
        weight = psis(log_w).log_weights.double().softmax(0)
    except WeightError:
        return ()
    if 1 / float(weight.square().sum()) < MOMENTS.fewest_effective:
        return ()
    names, x = _names(log_joint.latent), _values(log_joint.latent, z)
    mean, sd, mean_error, sd_error = _moments(x, weight)
    ours, width, own_error, width_error = _moments(x, log_width.softmax(0))
    shift, stretch = (ours - mean).abs() / sd, (width / sd).log()
    # The same draws on both sides: what is noise is noise of both, and this errs towards silence.
    far = shift > (MOMENTS.errors * torch.hypot(mean_error, own_error) / sd).clamp_min(MOMENTS.mean)
    wide = stretch.abs() > (MOMENTS.errors * torch.hypot(sd_error, width_error)).clamp_min(
        math.log(MOMENTS.sd)
    )
    off = (far | wide) & torch.isfinite(sd) & (sd > 0)
    worst = torch.maximum(shift / MOMENTS.mean, stretch.abs() / math.log(MOMENTS.sd))
    places = off.nonzero().squeeze(-1)
    order = worst[places].nan_to_num(torch.inf).argsort(descending=True)
    return tuple(
        Moved(names[i], float(shift[i]), math.exp(min(700.0, float(stretch[i]))))
        for i in places[order].tolist()
        if names[i] not in heavy
    )


def _reaching(
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
    scale = torch.ones(rows, 1, dtype=torch.float64, device=like.device)
    for number, wide in enumerate(MOMENTS.widths):
        scale[number * rows // 4 : (number + 1) * rows // 4] = wide
    eps = eps.scatter(-1, place, scale * eps.gather(-1, place))
    ratio = torch.full_like(eps[:, 0], 0.5)
    for wide in MOMENTS.widths:
        exponent = 0.5 * eps.square() * (1 - 1 / wide**2) - math.log(wide * dim)
        ratio = ratio + 0.25 * torch.logsumexp(exponent, -1).exp()
    with torch.no_grad():
        parts = [density.push(part) for part in eps.to(like.dtype).split(4096)]
    z, log_q = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return z, log_q, -ratio.log()


def _values(latent: LatentSpace, z: Tensor) -> Tensor:
    """All constrained values of points, one number a column."""
    values, _ = latent.constrain(z)
    return torch.cat([values[name].reshape(len(z), -1) for name in latent.sites], -1).double()


def _names(latent: LatentSpace) -> list[str]:
    """Names of the columns."""
    names = []
    for name, site in latent.sites.items():
        places = torch.Size(site.shape)
        if not places:
            names.append(name)
        else:
            index = torch.cartesian_prod(*(torch.arange(n) for n in places)).reshape(
                -1, len(places)
            )
            names += [f"{name}[{', '.join(map(str, row))}]" for row in index.tolist()]
    return names


def _moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted mean, sd, standard error of the mean, and of the logarithm of the sd."""
    ok = torch.isfinite(x).all(-1)
    x, weight = x[ok], weight[ok].unsqueeze(-1)
    weight = weight / weight.sum()
    mean = (weight * x).sum(0)
    square = (x - mean).square()
    variance = (weight * square).sum(0)
    sd = variance.sqrt()
    error = (weight.square() * square).sum(0).sqrt()
    spread = (weight.square() * (square - variance).square()).sum(0).sqrt()
    return mean, sd, error, spread / (2 * variance).clamp_min(1e-300)
