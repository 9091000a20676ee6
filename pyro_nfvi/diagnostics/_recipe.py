"""The numbers by which weights are read: Pareto smoothing, k-hat, and the words of a verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PsisRecipe:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024)."""

    #: Fewest tail draws to which a generalised Pareto distribution is fitted.
    least_tail: int = 5
    #: Weak prior on the shape: as if ten further tail draws had said 1/2 (appendix C).
    prior_draws: int = 10
    #: The shape of that prior.
    prior_shape: float = 0.5
    #: Spread of the prior on 1/scale in Zhang and Stephens' estimator.
    prior_spread: float = 3.0
    #: Log weights this close are equal whatever their precision, in nats.
    rounding: float = 1e-10
    #: Rounding of log weights above which their equality says nothing, in nats.
    largest_rounding: float = 0.5


@dataclass(frozen=True)
class KhatRecipe:
    """Thresholds of k-hat."""

    #: Below it the weights have a variance: the approximation is close.
    close: float = 0.5
    #: From it on the weights have no mean.
    no_mean: float = 1.0
    #: Largest weight, as a share above the mean, up to which k-hat means nothing.
    even: float = 0.05


@dataclass(frozen=True)
class VerdictRecipe:
    """When a fit is good, when usable with reweighting."""

    #: A fit with a light tail is good up to this gap, in nats.
    gap: float = 0.1
    #: Up to this gap, in nats, ...
    small_gap: float = 0.05
    #: ... and with this share of effective draws, the tail does not matter.
    even: float = 0.9
    #: k-hat of squares of a number from which on its second moment has no mean, however even the
    #: weights are; where the draws' own tails are too light to show it all.
    no_variance: float = 1.0
    #: The same where it cannot be by chance: of 300 numbers with 2.5 or more degrees of freedom
    #: none or one came this far, of 300 with one degree all.
    surely_no_variance: float = 1.2
    #: A fit is usable up to this gap, in nats, ...
    usable_gap: float = 1.0
    #: ... and from as many effective draws on.
    usable_ess: int = 100
    #: With so large a share effective, and the gap of a good fit, it is usable whatever the tail.
    mostly: float = 0.8
    #: Change of a number's mean by weights that is still good, in sds.
    mean: float = 0.1
    #: Change of its sd, as a logarithm.
    sd: float = 0.15
    #: Share of draws that the model may be unable to score.
    unscored: float = 0.005
    #: Numbers that a reason names at most.
    named: int = 3


@dataclass(frozen=True)
class ConvergenceRecipe:
    """Convergence of Markov chains."""

    #: Quantiles whose effective draws are the tail's (Vehtari et al. 2021, section 4.3).
    tail_levels: tuple[float, float] = (0.05, 0.95)


@dataclass(frozen=True)
class EvidenceRecipe:
    """Evidence by bridge sampling, and estimates that disagree."""

    #: Most steps of the fixed point; it converges geometrically, in ten or so.
    bridge_steps: int = 1000
    #: Change of the log evidence, in nats, at which it ends.
    bridge_change: float = 1e-10
    #: Draws of a chain from which on its autocorrelation is counted.
    fewest_of_chain: int = 8
    #: Difference of two estimates, in nats, up to which they agree: the gap of a good fit.
    nats: float = 0.1
    #: The same in standard errors of both.
    errors: float = 4.0
    #: Variance of the base noise of the harmonic estimator's density: McEwen and others take 0.8
    #: to 0.95.
    temperature: float = 0.8


PSIS_RECIPE, KHAT, VERDICT = PsisRecipe(), KhatRecipe(), VerdictRecipe()
CONVERGENCE = ConvergenceRecipe()
EVIDENCE = EvidenceRecipe()
