"""Findings about the posterior of one data set that no fit has: each with level and sentence."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_nfvi.diagnostics._finding import Finding, Level


@dataclass(frozen=True)
class UnusualData(Finding):
    """Data beside those that were simulated.

    Attributes:
        p_value: Chance that simulated data are at least as far from the others.
        false_alarms: Chance that simulated data are called unusual.
        simulations: Number of simulations that they were compared with.
        outside: Numbers of the data beyond all that were simulated, with their ranges.
        weighed: Importance weights judge the posterior, whatever the data.
    """

    p_value: float
    false_alarms: float
    simulations: int
    outside: tuple[str, ...] = ()
    weighed: bool = False

    @property
    def unusual(self) -> bool:
        """True if the data are farther out than simulations are."""
        return self.p_value < self.false_alarms

    @property
    def level(self) -> Level:
        return Level.FAULT if self.unusual and not self.weighed else Level.REMARK

    def sentence(self) -> str:
        where = f" ({'; '.join(self.outside)})" if self.outside else ""
        if not self.unusual:
            return (
                f"the data lie among {self.simulations} simulations (p = {self.p_value:.2g}){where}"
            )
        return (
            "the data lie outside of what was simulated: fewer than "
            f"{100 * self.false_alarms:g} % of {self.simulations} simulations are as far from the "
            f"others (p = {self.p_value:.2g}){where}"
        )


@dataclass(frozen=True)
class RanksOnAverage(Finding):
    """Ranks of the truth over many simulated data sets: right on average over the prior, or not.

    Attributes:
        word: Verdict of the calibration.
        data_sets: Number of data sets.
        largest: Largest distance of a distribution of ranks from the uniform one.
        weighed: Importance weights judge the posterior, whatever it is on average.
    """

    word: str
    data_sets: int
    largest: float
    weighed: bool = False

    @property
    def level(self) -> Level:
        return Level.FAULT if self.word == "not calibrated" and not self.weighed else Level.REMARK

    def sentence(self) -> str:
        return (
            f"over {self.data_sets} data sets of the model posteriors are {self.word} (intervals "
            f"hold the truth to within {100 * self.largest:.1f} % of their level)"
        )


@dataclass(frozen=True)
class NoDensity(Finding):
    """A posterior that no importance weights can judge.

    Attributes:
        why: Reason, as a clause.
    """

    why: str

    @property
    def level(self) -> Level:
        return Level.REMARK

    def sentence(self) -> str:
        return f"no importance weights: {self.why}"


@dataclass(frozen=True)
class LearntLikelihood(Finding):
    """A likelihood that a density of simulations stands in for.

    Attributes:
        simulations: Number of simulations that it was trained on.
        held_out: Mean log density of simulations that were held out, in nats.
    """

    simulations: int
    held_out: float

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"the likelihood is a density trained on {self.simulations} simulations: weights judge "
            "the fit to it, and cannot see what it got wrong itself"
        )
