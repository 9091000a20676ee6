"""Places where chains start: draws of a fit, and draws of a law that is wider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.hmc import State
from pyro_nfvi._mcmc.recipe import START
from pyro_nfvi.errors import ModelError


@dataclass(frozen=True, eq=False)
class Starts:
    """Starts of all chains, those of a superchain side by side.

    Attributes:
        position: ``(C, D)``.
        superchains: Number of places.
        wide: Number of those, the last ones, that come from the wider law.
    """

    position: Tensor
    superchains: int
    wide: int


def choose_starts(density: ScoredDensity, draw: Callable[[int], Tensor], num_chains: int) -> Starts:
    """Choose where chains start, each superchain at a place of its own.

    Most places are draws of a fit. A share of them are draws of its noise that is twice as wide:
    where these chains do not come to agree with the others, there is more than the fit shows.

    Args:
        density: The density of the noise.
        draw: Draws noise ``(n, D)`` of the fit.
        num_chains: Chains; four to a place where that divides them, else two, else one.

    Raises:
        ModelError: The density is not finite at any of a hundred draws of the fit.

    Example:
        >>> import torch
        >>> from pyro_nfvi._mcmc.autograd_density import AutogradDensity
        >>> normal = AutogradDensity(lambda z: -0.5 * z.square().sum(-1))
        >>> found = choose_starts(normal, lambda n: torch.randn(n, 2), 64)
        >>> found.position.shape, found.superchains, found.wide
        (torch.Size([64, 2]), 16, 4)
    """
    each = next(n for n in (START.chains_each, 2, 1) if num_chains % n == 0 and 2 * n <= num_chains)
    places = num_chains // each
    wide = int(START.wide_share * places)
    factor = torch.ones(places, 1)
    factor[places - wide :] = START.wide
    noise = draw(places)
    factor = factor.to(noise)
    place = noise * factor
    finite = State.at(density, place).finite()
    for tried in range(START.tries):
        missing = (~finite).nonzero().squeeze(-1)
        if not len(missing):
            break
        # Wide places come nearer, until they are draws of the fit.
        nearer = factor[missing] ** max(0.0, 1 - 2 * tried / START.tries)
        again = draw(len(missing)) * nearer
        found = State.at(density, again).finite()
        place[missing[found]], finite[missing[found]] = again[found], True
    if not bool(finite.any()):
        raise ModelError(
            f"The chains found no start: the density or its gradient is not finite at "
            f"{START.tries} draws of the fit. The fit is far from the posterior: see fit.report."
        )
    whole = finite.nonzero().squeeze(-1)
    lost = (~finite).nonzero().squeeze(-1)
    place[lost] = place[whole[torch.arange(len(lost), device=whole.device) % len(whole)]]
    return Starts(place.repeat_interleave(each, 0), places, wide)
