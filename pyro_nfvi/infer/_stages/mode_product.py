"""The fit of a product of mixtures, one over each independent block of latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.block_mixtures import BlockModes, ModeProduct
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
    if len(product.blocks) == 1:
        settings = replace(settings, modes=_fitted_modes(problem, product.blocks[0]))
    training = Training(
        torch.zeros(0),
        StopReason("converged", "Mixtures of Gaussians were learnt from importance weights."),
        "eager",
        "the search for modes runs in PyTorch",
        settings,
        start.notes,
    )
    return score_guide(problem, options, time, guide, training)


def _fitted_modes(problem: Problem, block: BlockModes) -> tuple[FittedMode, ...]:
    """Describe the modes of a block of all latents: weights of the components nearest to each."""
    latent = problem.latent
    weights = block.mixture.log_weights.exp()
    places = block.places[:, block.index.argsort()]
    nearest = _nearest(block)
    mass = torch.zeros(block.num_modes, dtype=weights.dtype).index_add(0, nearest, weights.cpu())
    values, _ = latent.constrain(places.to(latent.init_loc))
    return tuple(
        FittedMode(
            float(mass[place]),
            None,
            int(block.hits[place]),
            {name: value[place].tolist() for name, value in values.items()},
        )
        for place in mass.argsort(descending=True).tolist()
    )


def _nearest(block: BlockModes) -> Tensor:
    """Return the mode that is nearest to each component, in its own sds ``(K,)``."""
    away = block.places - block.mixture.locs.unsqueeze(1)
    factors = block.mixture.factors
    eps = torch.linalg.solve_triangular(factors, away.mT, upper=False)
    return eps.square().sum(1).argmin(-1).cpu()
