"""The fit of a product of mixtures, one over each independent block of latents."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from pyro_nfvi._gaussian_vi.block_mixtures import ModeProduct
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._settings import FittedMode
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training


def product_fit(
    problem: Problem, options: Options, time: TimePlan, start: WarmStart, product: ModeProduct
) -> Fit:
    """Score a guide that stands on a product of mixtures, and wrap it up as a fit.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        start: Result of the stages before.
        product: The mixtures.
    """
    with time.watch.part("set_up"), problem.own_names():
        guide = problem.guide(None)
        guide.start_at_mixture(product.groups())
    settings = settings_of(problem, options, guide)
    settings = replace(settings, modes=_fitted_modes(problem, product))
    training = Training(
        torch.zeros(0),
        StopReason("converged", "Mixtures of Gaussians were learnt from importance weights."),
        "eager",
        "the search for modes runs in PyTorch",
        settings,
        start.notes,
    )
    return score_guide(problem, options, time, guide, training)


def _fitted_modes(problem: Problem, product: ModeProduct) -> tuple[FittedMode, ...]:
    """Describe the modes of the whole, the heaviest first; none where combinations are too many.

    Of a combination, the starts that ended in the rarest of its parts are counted.
    """
    many = product.log_modes > math.log(MODE_SEARCH.most_modes) and len(product.blocks) > 1
    if many or product.given is not None:  # whose masses depend on the globals
        return ()
    latent = problem.latent
    places = [(torch.zeros(latent.dim, dtype=torch.float64), 1.0, product.num_starts)]
    for block in product.blocks:
        tops, masses = block.tops_and_masses()
        parts = [*zip(tops, masses.tolist(), block.places.hits.tolist(), strict=True)]
        places = [
            (place.index_copy(0, block.index, top.cpu()), mass * share, min(starts, hits))
            for place, mass, starts in places
            for top, share, hits in parts
        ]
    places.sort(key=lambda one: -one[1])
    values, _ = latent.constrain(torch.stack([place for place, _, _ in places]).to(latent.init_loc))
    return tuple(
        FittedMode(mass, None, starts, {name: at[row].tolist() for name, at in values.items()})
        for row, (_, mass, starts) in enumerate(places)
    )
