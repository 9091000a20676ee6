"""Findings about chains: typed values, each with its level, its sentence, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_nfvi._mcmc.chains import Ending
from pyro_nfvi.diagnostics._verdict import BAD, GOOD, Verdict
from pyro_nfvi.infer._findings import (
    ChainsMove,
    EvidenceDiffers,
    Finding,
    LeftOut,
    Level,
    MovedMoments,
    ShortTails,
)
from pyro_nfvi.infer._recipe import CHAINS

#: Findings about a fit that say nothing of chains that ran through it: they correct its shape.
_CORRECTED = (ChainsMove, EvidenceDiffers, LeftOut, MovedMoments, ShortTails)
#: Between "good" and "do not trust".
_ROUGH = "usable"


@dataclass(frozen=True)
class ChainFinding:
    """One fact about a run of chains; as :class:`Finding`, and not kept in files."""

    @property
    def level(self) -> Level:
        """Weight in the verdict."""
        raise NotImplementedError

    def sentence(self) -> str:
        """The reason that the verdict gives."""
        raise NotImplementedError

    def cure(self) -> str:
        """Advice, in one or two sentences."""
        raise NotImplementedError


@dataclass(frozen=True)
class CutShort(ChainFinding):
    """Fewer draws than were asked for.

    Attributes:
        asked: Draws of each chain that were asked for.
        made: Draws of each chain.
        warmup: Iterations of the warm-up, of those asked for.
        warmup_asked: Iterations that were asked for.
        ending: Reason.
    """

    asked: int
    made: int
    warmup: int
    warmup_asked: int
    ending: Ending

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        why = {Ending.TIME: "max_seconds were over", Ending.INTERRUPTED: "Ctrl-C came"}
        told = f"{why.get(self.ending, 'the warm-up took its share of max_seconds')}: "
        told += f"{self.made} of {self.asked} draws a chain"
        if self.warmup < self.warmup_asked:
            told += f", after {self.warmup} of {self.warmup_asked} warm-up steps"
        return told

    def cure(self) -> str:
        return "Give more time (max_seconds), or take fewer chains."


@dataclass(frozen=True)
class StuckChains(ChainFinding):
    """Chains of which no proposal was ever accepted.

    Attributes:
        count: Their number.
        chains: Number of all chains.
    """

    count: int
    chains: int

    @property
    def level(self) -> Level:
        return Level.FAULT

    def sentence(self) -> str:
        if self.count == self.chains:
            return "no chain ever moved: the gradient is not that of the density, or has no digits"
        return f"{self.count} of {self.chains} chains never moved"

    def cure(self) -> str:
        return (
            "Write the model in another parametrisation, in float64 "
            "(torch.set_default_dtype(torch.float64)), or improve the fit that chains start from."
        )


@dataclass(frozen=True)
class ChainsDisagree(ChainFinding):
    """Chains that began at different places, and whose draws are not those of one law.

    Attributes:
        name: The number of which they differ most.
        nested: Nested R-hat of it; NaN where there is one place only.
        rhat: Largest R-hat; NaN where chains are too short for it.
        wide: Share of the disagreement (B) that the starts from the wider law make.
    """

    name: str
    nested: float
    rhat: float
    wide: float = 0.0

    @property
    def level(self) -> Level:
        if self.nested > CHAINS.nested_rhat_fault or self.rhat > CHAINS.rhat_fault:
            return Level.FAULT
        return Level.DOUBT

    def sentence(self) -> str:
        told = f"chains from different places disagree about {self.name} (nested R-hat "
        told += f"{self.nested:.3f}, R-hat {self.rhat:.3f})"
        if self.wide > 0.5:
            told += ", most of all those that started outside of the fit"
        return told

    def cure(self) -> str:
        return (
            "Run longer (warmup_steps, num_samples). Where that does not help there is more than "
            "one mode, or a tail that the fit does not reach: fit anew with guide='auto', or in "
            "another parametrisation."
        )


@dataclass(frozen=True)
class Divergent(ChainFinding):
    """Transitions whose trajectory could not be followed.

    Attributes:
        count: Their number.
        total: Number of all transitions.
    """

    count: int
    total: int

    @property
    def level(self) -> Level:
        share = self.count / self.total
        if share > CHAINS.divergent_fault:
            return Level.FAULT
        return Level.DOUBT if share > CHAINS.divergent else Level.REMARK

    def sentence(self) -> str:
        return (
            f"{self.count} of {self.total} transitions were divergent: the density bends more than "
            "the step size allows, or is not finite, so that draws may be missing there"
        )

    def cure(self) -> str:
        return (
            "Write the model in another parametrisation (non-centred scales), or fit a larger "
            "flow, which straightens such places."
        )


@dataclass(frozen=True)
class FewEffective(ChainFinding):
    """Too few effective draws of a number.

    Attributes:
        name: The number.
        bulk: Its effective draws in the middle.
        tail: Its effective draws in the tails.
    """

    name: str
    bulk: float
    tail: float

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return f"{self.name} has {self.bulk:.0f} effective draws, in its tails {self.tail:.0f}"

    def cure(self) -> str:
        return "Take more draws (num_samples) or chains (num_chains)."


@dataclass(frozen=True)
class ReachedOutside(ChainFinding):
    """Mass where the fit has next to nothing, which the chains visited as often as they should.

    Attributes:
        share: Share of the posterior there, by draws from elsewhere.
        visited: Share of the chains' draws there.
    """

    share: float
    visited: float

    @property
    def level(self) -> Level:
        return Level.REMARK

    def sentence(self) -> str:
        return (
            f"about {100 * self.share:.2g} % of the posterior lies where the fit has next to "
            f"nothing, and {100 * self.visited:.2g} % of the chains' draws"
        )

    def cure(self) -> str:
        return "Use the draws as they are."


@dataclass(frozen=True)
class EvidenceDisagrees(ChainFinding):
    """Estimates of the log evidence that differ from that by bridge sampling.

    Attributes:
        bridge: Log evidence by bridge sampling, in nats.
        error: Its standard error.
        methods: Methods that give something else.
        values: What they give, in nats.
    """

    bridge: float
    error: float
    methods: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def level(self) -> Level:
        return Level.REMARK  # about the evidence: the draws do not rest on it

    def sentence(self) -> str:
        others = " and ".join(
            f"{value:.2f} by {name}" for name, value in zip(self.methods, self.values)
        )
        return (
            f"the log evidence is {self.bridge:.2f} ± {self.error:.2f} nats by bridge sampling, "
            f"and {others}: the fit's tails are too light or too heavy for that, or chains are not "
            "where the fit is"
        )

    def cure(self) -> str:
        return "Use the draws as they are."


@dataclass(frozen=True)
class Rounded(ChainFinding):
    """A log density so large that its rounding matters to acceptance.

    Attributes:
        nats: The rounding.
        dtype: Precision of the model.
    """

    nats: float
    dtype: str

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"in {self.dtype} the log density is rounded by {self.nats:.2g} nats, so that chains "
            "are not exact"
        )

    def cure(self) -> str:
        return "Call torch.set_default_dtype(torch.float64), and fit anew with data in float64."


def judge_chains(found: Sequence[ChainFinding], fit: Sequence[Finding], numbers: str) -> Verdict:
    """Judge a run of chains.

    Args:
        found: Findings about the chains.
        fit: Findings about the fit that they started from: mass that it has not seen is unseen
            here too.
        numbers: R-hat and effective draws, in words.
    """
    every: list[ChainFinding | Finding] = [
        *found,
        *(one for one in fit if not isinstance(one, _CORRECTED)),
    ]
    worst = max((one.level for one in every), default=Level.REMARK)
    word = {Level.REMARK: GOOD, Level.DOUBT: _ROUGH, Level.FAULT: BAD}[worst]
    order = sorted(every, key=lambda one: -one.level)
    reasons = [sentence for one in order if (sentence := one.sentence())]
    if worst is Level.REMARK:
        return Verdict(word, [numbers, *reasons], "Use the draws as they are.")
    first = next(one for one in order if one.level is worst)
    next_step = first.cure() if isinstance(first, ChainFinding) else _NEXT_OF_FIT
    return Verdict(word, [numbers, *reasons], next_step)


_NEXT_OF_FIT = (
    "See the reasons: they are about the fit, and chains that start from it inherit them."
)
