"""Means and sds of what users see: those of the guide's own draws against weighted ones.

Two thousand draws cannot show what one draw in fifty thousand does to an sd, and a user may take a
million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi.density import FlowDensity
from pyro_nfvi.diagnostics import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer.draws import WeighedDraws, push_chunks, score
from pyro_nfvi.latent import LatentSpace
from pyro_nfvi.logjoint import LogJoint
from pyro_nfvi.mixture import MixtureDensity

__all__ = ["MOMENT_ROWS", "Moved", "moved_moments"]

#: Further draws that are scored by the model, numbers of the model that they may hold, and draws
#: that the guide alone makes for its own moments.
MOMENT_ROWS, _NUMBERS, _OWN = 10_000, 20_000_000, 20_000
#: Scales of the base noise that reach its tails; one coordinate of a row is scaled.
_WIDE = 2.0
#: How far a mean may be off, in sds, and an sd, as a logarithm (15 %), and standard errors that it
#: has to be off as well.
_MEAN, _SD, _ERRORS = 0.1, 0.14, 3.0
#: Fewest effective draws from which anything is concluded.
_FEWEST = 100


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
) -> tuple[Moved, ...]:
    r"""Compare means and sds of all constrained values under the guide with weighted ones.

    The guide's moments are taken with base noise of which half has one coordinate twice as wide,
    and weights below 2 that undo it, so that draws as rare as one in millions count with what they
    do to an sd. The posterior's are those of Pareto-smoothed weights on the fit's draws and on
    more.

    Args:
        density: The guide's.
        log_joint: The model's.
        draws: The fit's draws.
        seed: Of the further draws.
        heavy: Numbers without a variance, which are left out.

    Returns:
        The numbers that are off beyond noise, the worst first; none where weights say nothing.

    Cost:
        10,000 rows of the model, fewer where one holds many numbers, and 20,000 draws of the guide.

    Source: importance sampling with a mixture as in Owen and Zhou 2000, JASA 95, section 2.
    """
    if not draws.exact or log_joint.subsampled or log_joint.how == "loop":
        return ()
    z, log_p, log_q = draws.z, draws.log_p, draws.log_q
    noise = stream(seed, "moments", device=z.device)
    rows = min(MOMENT_ROWS, _NUMBERS // max(1, log_joint.size))
    if density.base is None and rows > 1:
        more, more_q = push_chunks(density, rows, lambda n: density.sample_base(n, generator=noise))
        more_p = score(log_joint, more, noise)[0].log_p
        z, log_p, log_q = (
            torch.cat([draws.z, more]),
            torch.cat([log_p, more_p]),
            torch.cat([log_q, more_q]),
        )
    if density.base is None and not isinstance(density, MixtureDensity):
        own, own_weight = _reaching(density, draws.z, noise)
    else:
        own, own_weight = z, z.new_ones(len(z), dtype=torch.float64)
    log_w = (log_p - log_q).double()
    log_w = torch.where(log_w < torch.inf, log_w, torch.full_like(log_w, -torch.inf))
    try:
        weight = psis(log_w).log_weights.double().softmax(0)
    except WeightError:
        return ()
    if 1 / float(weight.square().sum()) < _FEWEST:
        return ()
    names = _names(log_joint.latent)
    mean, sd, mean_error, sd_error = _moments(_values(log_joint.latent, z), weight)
    ours, width, own_error, width_error = _moments(_values(log_joint.latent, own), own_weight)
    shift = (ours - mean).abs() / sd
    stretch = (width / sd).log()
    far = shift > torch.maximum(
        torch.full_like(shift, _MEAN),
        _ERRORS * (mean_error.square() + own_error.square()).sqrt() / sd,
    )
    wide = stretch.abs() > torch.maximum(
        torch.full_like(shift, _SD),
        _ERRORS * (sd_error.square() + width_error.square().clamp(max=1e6)).sqrt(),
    )
    # A sum of squares that is one draw's has no error that could be trusted; its size says enough.
    wide |= stretch > 1.0
    off = (far | wide) & torch.isfinite(sd) & (sd > 0)
    worst = torch.maximum(shift / _MEAN, stretch.abs() / _SD)
    places = off.nonzero().squeeze(-1)
    order = worst[places].nan_to_num(torch.inf).argsort(descending=True)
    return tuple(
        Moved(names[i], float(shift[i]), math.exp(min(700.0, float(stretch[i]))))
        for i in places[order].tolist()
        if names[i] not in heavy
    )


def _reaching(density: FlowDensity, like: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from the guide with noise that reaches its tails: points and their weights."""
    dim = like.shape[-1]
    eps = torch.randn(_OWN, dim, generator=noise, dtype=torch.float64, device=like.device)
    half = _OWN // 2
    place = torch.randint(dim, (half, 1), generator=noise, device=like.device)
    eps[:half] = eps[:half].scatter(-1, place, _WIDE * eps[:half].gather(-1, place))
    ratio = (0.5 * eps.square() * (1 - 1 / _WIDE**2)).exp() / _WIDE
    weight = 1 / (0.5 + 0.5 * ratio.mean(-1))
    with torch.no_grad():
        parts = [density.push(rows)[0] for rows in eps.to(like.dtype).split(4096)]
    return torch.cat(parts), weight


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
