"""The numbers of Hamiltonian chains: each once, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransitionRecipe:
    """One Hamiltonian transition."""

    #: Error of the energy, in nats, from which on a trajectory counts as divergent (Betancourt
    #: 2017, section 5.2, and Stan take 1000): its proposal is never accepted, exp(-1000) being 0.
    divergence: float = 1000.0
    #: Most leapfrog steps of a transition: the depth of ten doublings that NUTS allows by default.
    most_steps: int = 1024


@dataclass(frozen=True)
class AdaptationRecipe:
    """Step size, scales and trajectory length, learnt by all chains together in the warm-up."""

    #: Harmonic mean of the chains' acceptance probabilities that the step size aims at: 0.651 is
    #: optimal in many dimensions (Beskos et al. 2013); where few chains are in narrow places, more
    #: costs little and lets them move.
    acceptance: float = 0.75
    #: Least acceptance probability that enters the harmonic mean: one chain that is stuck then
    #: weighs as much as twenty, and not infinitely many.
    least_acceptance: float = 0.05
    #: Change of the log step size for each unit of acceptance at the first iteration; it falls as
    #: the square root of the iterations. Log acceptance falls by about 1 for a factor of 1.5.
    gain: float = 1.0
    #: Iterations that a restart of the step size counts as done, after new scales.
    restart: int = 8
    #: Step size at first, times D to the quarter: that of a standard normal (Beskos et al. 2013).
    first_step: float = 1.0
    #: Trajectory length at first, in sds: at half a period, 1.57, a normal's draws are antithetic.
    first_length: float = 1.0
    #: Iterations before the trajectory length moves: the step size comes first.
    settle: int = 10
    #: Learning rate of the log trajectory length. Adam of that rate moves a factor of 20 or more in
    #: 200 iterations (Hoffman et al. 2021 take 0.025 for thousands).
    rate: float = 0.05
    #: Forgetting of the squared gradient in that Adam (Hoffman et al. 2021).
    forget: float = 0.05
    #: Longest trajectory, in step sizes, while it is learnt: a quarter of the most steps, since
    #: jitter doubles the mean.
    longest: float = 256.0
    #: Places in the warm-up, as shares, at which the scales are set anew.
    scale_places: tuple[float, ...] = (0.1, 0.2, 0.35, 0.55, 0.8)
    #: Weight, in draws, of the scale that a coordinate has already: all chains are few at first.
    scale_prior: float = 10.0


@dataclass(frozen=True)
class RunRecipe:
    """A run of many chains."""

    #: Share of ``max_seconds`` that the warm-up may take.
    warmup_share: float = 0.4
    #: Fewest draws of each chain, whatever the time: R-hat needs four.
    fewest_draws: int = 4


@dataclass(frozen=True)
class StartRecipe:
    """Places where chains start."""

    #: Chains of a superchain, which start at one place: several tell how much of the spread between
    #: superchains is chance (Margossian et al. 2024).
    chains_each: int = 4
    #: Share of the superchains that start from a law wider than the fit.
    wide_share: float = 0.25
    #: Width of that law, in the fit's own noise.
    wide: float = 2.0
    #: Draws from which a start with a finite density is taken.
    tries: int = 100


@dataclass(frozen=True)
class ShortRecipe:
    """Short chains from draws of a fit, which show where it is not the posterior."""

    #: Gradients of each chain, "a few dozen leapfrog steps": eight trajectories of three in few
    #: dimensions, after which a chain has forgotten its start where the fit is right.
    gradients: int = 24
    #: Length of a trajectory, in sds of the noise: a quarter of a period of a normal, at whose end
    #: the position is independent of the beginning.
    length: float = 1.5707963267948966
    #: Step size at first, times D to the quarter (Beskos et al. 2013).
    first_step: float = 0.9
    #: Mean acceptance that a step size needs; else it is halved.
    acceptance: float = 0.6
    #: Share of the starts that need a finite density: those without one are not run, and the rest
    #: are no draws of the fit.
    finite: float = 0.995
    #: Halvings, at most: a chain of smaller steps would not leave its start.
    halvings: int = 4


TRANSITION, ADAPTATION = TransitionRecipe(), AdaptationRecipe()
RUN, START, SHORT = RunRecipe(), StartRecipe(), ShortRecipe()
