"""Means and sds of what users see: those of the guide's own draws against weighted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.infer._checks.reaching_draws import ReachingDraws, moved_columns
from pyro_nfvi.infer._recipe import MOMENTS


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
    latent: LatentSpace,
    draws: ReachingDraws,
    *,
    heavy: tuple[str, ...] = (),
    factor: float = MOMENTS.sd,
) -> tuple[Moved, ...]:
    """Compare means and sds of all constrained values under the guide with weighted ones.

    What rare draws do to an sd counts, and so does mass that the guide falls short of. The guide's
    moments are those of the weights that undo the width, the posterior's those of Pareto-smoothed
    importance weights on the same draws; so most of their noise is common, and the standard error
    is that of the difference.

    Args:
        latent: The latent space.
        draws: Draws that reach into the guide's tails.
        heavy: Numbers without a variance, which are left out.
        factor: Factor on an sd from which on it is off.

    Returns:
        The numbers that are off beyond noise, the worst first.
    """
    names, x = names_of(latent), values_of(latent, draws.z)
    ok = torch.isfinite(x).all(-1)
    shift, stretch, off = moved_columns(x[ok], draws.posterior[ok], draws.own[ok], factor)
    return tuple(
        Moved(names[i], float(shift[i]), math.exp(min(700.0, float(stretch[i]))))
        for i in off
        if names[i] not in heavy
    )


def values_of(latent: LatentSpace, z: Tensor) -> Tensor:
    """Return all constrained values of points, one number a column."""
    values, _ = latent.constrain(z)
    return torch.cat([values[name].reshape(len(z), -1) for name in latent.sites], -1).double()


def names_of(latent: LatentSpace) -> list[str]:
    """Return the names of the columns of :func:`values_of`."""
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
