"""Rounds of simulations: the prior, cut to where the posterior of one data set is."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.forward_model import ForwardModel
from pyro_nfvi._random import stream
from pyro_nfvi.amortised._model_simulations import ModelSimulations
from pyro_nfvi.amortised._prior_model import PriorModel
from pyro_nfvi.amortised._recipe import SIMULATIONS
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._weighted_draws import push_chunks


class TruncatedPrior:
    r"""The prior on the region of highest density of a posterior.

    .. math:: \{\theta : q(\theta \mid x) \ge \tau\}, \quad
        \tau \text{ the } 10^{-4} \text{ quantile of } q \text{ at its own draws}

    Draws from it are proportional to the prior there, so that a density which is trained on them
    needs no correction.

    Args:
        simulations: The model as a simulator.
        density: The posterior of the data set.
        seed: Of the draws that find the edge.

    Source: Deistler, Goncalves & Macke 2022, arXiv:2210.04815.
    """

    def __init__(self, simulations: ModelSimulations, density: FlowDensity, seed: int) -> None:
        self.simulations, self.density = simulations, density
        noise = stream(seed, "edge", device=simulations.latent.init_loc.device)
        _, log_q = push_chunks(
            density, SIMULATIONS.edge_draws, lambda n: density.sample_base(n, generator=noise)
        )
        self.edge = float(torch.quantile(log_q.double(), SIMULATIONS.truncated))
        simulator = simulations.simulator
        freed = {**simulator.kwargs, **dict.fromkeys(simulator.arguments.values())}
        prior = PriorModel(simulator.model, simulator.args, freed, simulations.latent)
        self._prior = ForwardModel(prior, (), {}, {})

    @torch.no_grad()
    def holds(self, z: Tensor) -> Tensor:
        """Tell which of the latents ``(n, D)`` lie in the region."""
        return self.density.log_prob(z) >= self.edge

    def draw(self, count: int, seed: int) -> Tensor:
        """Draw ``(count, D)`` by rejection.

        Raises:
            ModelError: The region is so small a part of the prior that draws are too rare.
        """
        latent, tried, rows = self.simulations.latent, 0, SIMULATIONS.run_rows
        kept: list[Tensor] = []
        while sum(len(part) for part in kept) < count:
            if tried >= SIMULATIONS.prior_draws * count:
                share = sum(len(part) for part in kept) / tried
                raise ModelError(
                    f"{100 * share:.2g} % of the prior lies where the posterior is, which is too "
                    "little to draw from by rejection. Take fewer rounds, or method='likelihood', "
                    "whose rounds draw from the posterior itself."
                )
            with self.simulations.scope(seed + tried):
                for part in self._prior.run(10 * rows, {}, tuple(latent.sites), rows):
                    z = latent.pack(part)
                    kept.append(z[self.holds(z)])
            tried += 10 * rows
        return torch.cat(kept)[:count]
