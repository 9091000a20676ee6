"""Numbers of amortised inference, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SimulationRecipe:
    """Simulations of the model that the density is trained on."""

    #: Fewest simulations: of fewer, the tenth that is held out says nothing.
    fewest: int = 200
    #: Largest share of simulations with NaN or infinite numbers that are counted and left out.
    #: Where more are, the simulator is more likely wrong than the prior wide.
    bad_share: float = 0.2
    #: Share held out: it ends the training, and its ranks are the first calibration.
    held_share: float = 0.1
    #: Share of a posterior outside of the region to which later rounds confine the prior.
    truncated: float = 1e-4
    #: Draws with which the edge of that region is found.
    edge_draws: int = 10_000
    #: Draws of the prior for one that lies in that region, at most.
    prior_draws: int = 1_000
    #: Numbers that one run of many simulations holds at most: 16 MB in double precision.
    run_size: int = 2_000_000
    #: Simulations in one run at most.
    run_rows: int = 2_000


@dataclass(frozen=True)
class NetworkRecipe:
    """Networks of flow and summary."""

    #: Widths of the hidden layers of a named flow that takes them, unless they are given.
    hidden_dim: tuple[int, ...] = (50, 50)
    #: Width of the hidden layers of a summary network.
    width: int = 64
    #: Numbers of the summary for each latent: a mean, a scale, and what they may be nonlinear in.
    summary_per_latent: int = 4
    #: Fewest numbers of the summary.
    fewest_summaries: int = 8
    #: Standard deviations beyond which data grow logarithmically, so that tails of the simulator
    #: do not drown the rest.
    linear: float = 5.0
    #: Taps of a convolution over a series.
    taps: int = 3


@dataclass(frozen=True)
class JudgementRecipe:
    """Judgement of the posterior of one data set."""

    #: Draws with which a posterior is judged, as those of a fit.
    draws: int = 2_000
    #: Simulations that data are compared with.
    reference: int = 2_000
    #: Neighbour to which the distance is taken: the nearest alone is noisy.
    neighbour: int = 5
    #: Chance that data which the model simulates are called unusual.
    level: float = 0.01
    #: Fewest data sets whose ranks a verdict of a model without a density rests on: a rank that
    #: is off by 0.05 shows in so many.
    data_sets: int = 1_000
    #: Numbers outside of all simulations that a message names.
    named: int = 3
    #: Largest distance of the distribution of ranks from the uniform one at which a posterior
    #: that tests tell from an exact one is nearly calibrated: no interval of any
    #: level holds the truth more than this share of data sets too often or too seldom.
    near: float = 0.05
    #: Draws from each posterior, for the rank of the truth.
    rank_draws: int = 200
    #: Draws, times numbers of one, that are ranked at once: 32 MB in single precision.
    rank_size: int = 8_000_000


SIMULATIONS, NETWORKS, JUDGEMENT = SimulationRecipe(), NetworkRecipe(), JudgementRecipe()
