"""Findings about a fit beyond its weights: typed values, each with its level and its sentence.

Stages of a fit add them to ``Training.findings``; the verdict reads their values and levels, never
their words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pyro_nfvi._train.left_out_particles import LeftOut as LeftOut  # one kind of finding
from pyro_nfvi.diagnostics._finding import Finding, Level
from pyro_nfvi.diagnostics._recipe import VERDICT
from pyro_nfvi.infer._amortised_findings import LearntLikelihood as LearntLikelihood
from pyro_nfvi.infer._amortised_findings import UnusualData as UnusualData
from pyro_nfvi.infer._checks.missed_mass import Outside, too_much
from pyro_nfvi.infer._recipe import MODE_CHECK, PLATES, PRECISION, TAIL_CHECK, WORDS

_F = TypeVar("_F", bound="Finding")


@dataclass(frozen=True)
class Improper(Finding):
    """Directions in which the density does not fall.

    Attributes:
        names: The latent numbers that change along them.
    """

    names: tuple[str, ...]

    @property
    def level(self) -> Level:
        return Level.FAULT

    def sentence(self) -> str:
        return f"the posterior is improper in {', '.join(self.names)}"


@dataclass(frozen=True)
class MissedModes(Finding):
    """Modes that the search found, and that the guide does not reach.

    Attributes:
        count: Their number.
    """

    count: int

    @property
    def level(self) -> Level:
        return Level.FAULT

    def sentence(self) -> str:
        verb = "modes were found and are" if self.count > 1 else "mode was found and is"
        return f"{self.count} other {verb} not reached"


@dataclass(frozen=True)
class ModeSearch(Finding):
    """The search for modes.

    Attributes:
        starts: Points from which modes were looked for; 0 where none were.
        modes: Number of modes in the fit; 0 for a guide of one piece.
        alone: Modes among these that one start alone reached.
        full: Whether as many modes were found as are kept.
        points: Points at which the density was evaluated in search of narrow modes; 0 where it was
            not.
    """

    starts: int
    modes: int = 0
    alone: int = 0
    full: bool = False
    points: int = 0

    @property
    def level(self) -> Level:
        return Level.FAULT if self.full else Level.REMARK

    def sentence(self) -> str:
        if self.full:
            return f"{self.modes} modes were found, as many as are kept: there may be more"
        if not self.starts:
            return "no starts were compared, so another mode would not have been seen"
        missing = "a mode that no start reaches would go unseen"
        if self.points:
            # Three quarters of N points are draws of the modes themselves, and one of these
            # hits a share v of them with 95 % from v = 4 / N on.
            missing += (
                f", such as a narrow one that fewer than {4 / self.points:.1g} of draws come near "
                f"(none of {self.points} points, and no ascent from the best of them, did)"
            )
        if not self.modes:
            return f"none of {self.starts} starts led to another mode; {missing}"
        words = f"{self.modes} modes were found from {self.starts} starts; {missing}"
        if self.alone:
            words += f"; {self.alone} of the modes were found by one start alone: there may be more"
        return words


@dataclass(frozen=True)
class IndependentModes(Finding):
    """A fit whose modes are those of independent blocks of latents, in all combinations.

    Attributes:
        blocks: Blocks of latents that are independent of each other.
        several: How many of them have several modes.
        log_modes: Logarithm of the number of modes of the whole.
        starts: Starts that were shared by all blocks.
        points: Points that were scored to learn their mixtures.
        given: Globals given which the blocks are independent; empty where they are so by
            themselves.
    """

    blocks: int
    several: int
    log_modes: float
    starts: int
    points: int
    given: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        return Level.REMARK

    def sentence(self) -> str:
        if self.log_modes < math.log(1e6):
            number = f"{math.exp(self.log_modes):.0f}"
        else:
            number = f"10^{self.log_modes / math.log(10):.1f}"
        given = f" given {', '.join(self.given)}" if self.given else ""
        return (
            f"{self.several} of {self.blocks} blocks of latents, which are independent{given} "
            f"wherever pairs of points were compared, have several modes; the fit holds all "
            f"{number} of their combinations. A mode of a block that none of {self.starts} "
            f"starts and {self.points} points reached would go unseen"
        )


@dataclass(frozen=True)
class ModesUnseen(Finding):
    """An estimate of unseen starts, and the modes that the search dropped or merged.

    The estimate is of modes to which starts of the same kind would lead; it bounds no mass.

    Attributes:
        starts: Starts that ended in a mode.
        ends: Modes in which they ended.
        alone: Modes that one start alone ended in.
        chance: Good and Turing's chance that one more start ends in a mode that none has met.
        unseen: Chao's estimate of the number of such modes, weighted by evidence.
        share: Their share of the evidence, were each as heavy as one met once.
        beyond: Modes that were dropped since no more are kept.
        merged: Modes that were taken for one with another.
        left_out: Modes that were dropped for lack of mass.
        left_out_share: Share of the mass that these had.
    """

    starts: int
    ends: int
    alone: int = 0
    chance: float = 0.0
    unseen: float = 0.0
    share: float = 0.0
    beyond: int = 0
    merged: int = 0
    left_out: int = 0
    left_out_share: float = 0.0

    @property
    def level(self) -> Level:
        fault = self.beyond > 0 or self.share > MODE_CHECK.most_unseen
        return Level.FAULT if fault else Level.REMARK

    def sentence(self) -> str:
        words = []
        if self.share > 0:
            words.append(
                f"{self.alone} of {self.ends} modes were met by one of {self.starts} starts alone: "
                f"an estimate of unseen starts gives {self.unseen:.2g} more modes or more, with "
                f"{100 * self.share:.2g} % of the evidence (no bound on mass)"
            )
        if self.beyond:
            words.append(
                f"{self.beyond} modes were dropped since no more are kept, so that their mass is "
                "missing"
            )
        return "; ".join(words)


@dataclass(frozen=True)
class MassOutside(Finding):
    """Posterior mass where the guide has hardly any, by draws from elsewhere.

    Attributes:
        share: Share of the mass; None where nothing can be concluded.
        error: Its standard error.
        places: Number of places and widths that were drawn from.
        name: The latent whose mean or sd this mass moves most; empty where it moves none.
        shift: How far its mean moves, in sds.
        stretch: By which factor its sd changes.
        unseen: Whether nothing else was looked at either: no starts were compared.
    """

    share: float | None = None
    error: float = 0.0
    places: int = 0
    name: str = ""
    shift: float = 0.0
    stretch: float = 1.0
    unseen: bool = False

    @classmethod
    def of(cls, outside: Outside | None, *, unseen: bool) -> MassOutside:
        """Make the finding from what :func:`mass_outside` returns."""
        if outside is None:
            return cls(unseen=unseen)
        return cls(**dataclasses.asdict(outside), unseen=unseen)

    @property
    def level(self) -> Level:
        if self.share is None:
            return Level.DOUBT if self.unseen else Level.REMARK
        if too_much(Outside(self.share, self.error)):
            return Level.FAULT
        return Level.DOUBT if self.name else Level.REMARK

    def sentence(self) -> str:
        if self.share is None:
            return (
                "draws from elsewhere said nothing about mass beyond the guide's own (a narrow "
                "funnel, a model that cannot be run out there, or data of which only a part can be "
                "seen)"
            )
        if self.level is Level.REMARK:
            return ""
        words = (
            f"about {100 * self.share:.2g} % of the posterior lies where the guide has next to "
            "nothing: a tail or a mode that it does not reach"
        )
        if self.name:
            words += (
                f"; it moves {self.name} by {self.shift:.2f} sd and its sd by a factor of "
                f"{self.stretch:.2g}"
            )
        return words


@dataclass(frozen=True)
class NarrowModes(Finding):
    """Narrow modes that a random search around draws of the guide found, and that it misses.

    Attributes:
        count: Their number.
        share: Share of the mass that they hold together, at least.
        points: Points at which the density was evaluated; 0 where that could not be done.
    """

    count: int
    share: float = 0.0
    points: int = 0

    @property
    def level(self) -> Level:
        return Level.DOUBT if self.count else Level.REMARK

    def sentence(self) -> str:
        if not self.points:
            return "draws of the guide were not searched for narrow modes beside them"
        if not self.count:
            return ""
        modes = f"{self.count} narrow modes" if self.count > 1 else "a narrow mode"
        return (
            f"{modes} with about {100 * self.share:.2g} % of the posterior's mass or more, where "
            f"the guide has next to nothing, came up among {self.points} points on and beside its "
            "draws: fit again with another seed, or start there"
        )


@dataclass(frozen=True)
class SecondOpinion(Finding):
    """Draws of the fit scored by Pyro's own trace, with validation on.

    Attributes:
        draws: Draws that were scored.
        wrong: Draws that Pyro scores otherwise, or refuses.
        site: The site at fault in the first of these.
        reason: What Pyro says of it.
        left_out: Draws for which there was no time.
    """

    draws: int
    wrong: int = 0
    site: str = ""
    reason: str = ""
    left_out: int = 0

    @property
    def level(self) -> Level:
        if self.draws == 0:
            return Level.DOUBT
        return Level.FAULT if self.wrong else Level.REMARK

    def sentence(self) -> str:
        if self.draws == 0:
            return (
                "Pyro's own trace scored none of the draws: the model raises or has no finite "
                "density there when it is run anew, so that its log joint was compared with nothing"
            )
        if self.wrong:
            where = f"at the site {self.site!r}, " if self.site else ""
            return (
                f"{self.wrong} of {self.draws} draws are impossible or scored otherwise by Pyro's "
                f"own trace: {where}{self.reason}"
            )
        if self.left_out:
            return (
                f"Pyro's own trace scored {self.draws} draws alike; for {self.left_out} more there "
                "was no time"
            )
        return ""


@dataclass(frozen=True)
class Relabelled(Finding):
    """Latents that the posterior lets exchange, so that each mode has images.

    Attributes:
        names: Sites that take part.
        order: Number of relabellings under which the posterior stays the same.
        modes: Modes that were found, those that are images of each other counted once.
        images: Whether the fit holds the images too, and not one of each mode alone.
    """

    names: tuple[str, ...]
    order: int
    modes: int
    images: bool

    @property
    def level(self) -> Level:
        return Level.REMARK if self.images else Level.DOUBT

    def sentence(self) -> str:
        modes = f"{self.modes} mode{'s' if self.modes > 1 else ''}"
        if self.images:
            return f"the modes in the fit are {modes} up to the labels of {', '.join(self.names)}"
        return (
            f"the posterior stays the same under {self.order} relabellings of "
            f"{', '.join(self.names)}; the fit holds {modes}, and none of the images: what does "
            "not depend on the labels, such as predictions, is the posterior's; numbers of single "
            "entries are those of one labelling, and the log evidence is too low by up to "
            f"{math.log(self.order):.2f} nats"
        )


@dataclass(frozen=True)
class TimeOver(Finding):
    """Parts of a fit that were left out, since the time of the call was over.

    Attributes:
        limit: ``max_seconds``.
        undone: The parts, in words.
    """

    limit: float
    undone: tuple[str, ...]

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"max_seconds={self.limit:g} left no time for {', '.join(self.undone)}: give more, and "
            "look again"
        )


@dataclass(frozen=True)
class HeavyTails(Finding):
    """Numbers whose marginals fall as a power, by the density itself.

    Attributes:
        names: The numbers, the heaviest first.
        indices: Their tail indices: moments below that order exist, and no others.
        unknown: Numbers whose tails could not be followed.
        looked: Whether tails were followed at all.
    """

    names: tuple[str, ...] = ()
    indices: tuple[float, ...] = ()
    unknown: int = 0
    looked: bool = True

    @property
    def without_variance(self) -> tuple[str, ...]:
        """The numbers that have none."""
        both = zip(self.names, self.indices)
        return tuple(name for name, index in both if index < TAIL_CHECK.no_variance)

    @property
    def level(self) -> Level:
        heavy = self.indices and min(self.indices) < TAIL_CHECK.no_variance
        return Level.DOUBT if heavy else Level.REMARK

    def sentence(self) -> str:
        if not self.looked:
            return "tails were not followed (a model that runs draw by draw, or on mini-batches)"
        words = [
            f"{name} falls as a power, of index {index:.2g}: {_moments(index)}"
            for name, index in zip(self.names[: WORDS.named], self.indices)
        ]
        if len(self.names) > WORDS.named:
            words.append(f"so do {len(self.names) - WORDS.named} more")
        if self.unknown:
            words.append(f"{self.unknown} tails were not followed, or not far enough")
        return "; ".join(words)


@dataclass(frozen=True)
class SupportEdge(Finding):
    """An edge of the support inside the unconstrained space.

    Attributes:
        share: Share of the draws, moved outwards by a factor, where the density is zero.
        reach: The factor.
        drop: Nats by which the density on the edge lies below that in the middle of the draws.
    """

    share: float
    reach: float
    drop: float

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"the density falls to zero at once where it is {max(self.drop, 0.0):.1f} nats below "
            f"that in the middle of the draws, {100 * self.share:.2g} % of which have none if they "
            f"are moved outwards by a factor of {self.reach:g}: a smooth "
            "guide cannot follow such an edge. Declare it as the support of a latent (a "
            "constraint, or a transformed number)"
        )


@dataclass(frozen=True)
class ShortTails(Finding):
    """Numbers whose draws stop short of where the density goes on.

    Attributes:
        names: The numbers, the worst first.
        stretches: Their sds with the tails that the density has, over those of the draws.
    """

    names: tuple[str, ...] = ()
    stretches: tuple[float, ...] = ()

    @property
    def level(self) -> Level:
        return Level.DOUBT if self.names else Level.REMARK

    def sentence(self) -> str:
        words = [
            f"draws of {name} stop short of its tails: with these its sd is {ratio:.2f} times as "
            "large"
            for name, ratio in zip(self.names[: WORDS.named], self.stretches)
        ]
        if len(self.names) > WORDS.named:
            words.append(f"so do those of {len(self.names) - WORDS.named} more")
        return "; ".join(words)


@dataclass(frozen=True)
class MovedMoments(Finding):
    """Numbers whose mean or sd under the guide's draws is not that of the weighted ones.

    Attributes:
        names: The numbers, the worst first.
        shifts: How far the means are off, in sds.
        stretches: The sds of the guide's draws over the weighted ones.
    """

    names: tuple[str, ...]
    shifts: tuple[float, ...]
    stretches: tuple[float, ...]

    @property
    def level(self) -> Level:
        return Level.DOUBT if self.names else Level.REMARK

    def sentence(self) -> str:
        words = [
            f"of many draws {name} has a mean that is {shift:.2f} sd off and an sd that is "
            f"{stretch:.2f} times the weighted one"
            for name, shift, stretch in zip(self.names[: WORDS.named], self.shifts, self.stretches)
        ]
        if len(self.names) > WORDS.named:
            words.append(f"{len(self.names) - WORDS.named} more numbers are off")
        return "; ".join(words)


@dataclass(frozen=True)
class ChainsMove(Finding):
    """Movements of means and sds under short chains that start at the guide's draws.

    Attributes:
        chains: Number of chains; 0 where none were run.
        names: Numbers that surely move by more than a user may see, the worst first.
        shifts: How far their means move, in sds.
        stretches: By which factors their sds change.
        sites: Every site.
        site_means: The largest lower bound of the error of a mean in each, in sds.
        site_sds: That of an sd, as a logarithm.
    """

    chains: int = 0
    names: tuple[str, ...] = ()
    shifts: tuple[float, ...] = ()
    stretches: tuple[float, ...] = ()
    sites: tuple[str, ...] = ()
    site_means: tuple[float, ...] = ()
    site_sds: tuple[float, ...] = ()

    @property
    def level(self) -> Level:
        return Level.DOUBT if self.names else Level.REMARK

    def sentence(self) -> str:
        if not self.names:
            return ""
        words = [
            f"{name} by {abs(shift):.2f} sd and its sd by a factor of {stretch:.2f}"
            for name, shift, stretch in zip(self.names[: WORDS.named], self.shifts, self.stretches)
        ]
        if len(self.names) > WORDS.named:
            words.append(f"{len(self.names) - WORDS.named} more numbers")
        return (
            f"short chains, which leave the posterior as it is, move {', '.join(words)} "
            f"({self.by_site()})"
        )

    def by_site(self) -> str:
        """Name the bound of each site that has one; empty without chains."""
        if not self.chains:
            return ""
        rows = zip(self.sites, self.site_means, self.site_sds)
        bounds = [
            f"{site}: mean {mean:.2f} sd, sd {100 * math.expm1(sd):.0f} %"
            for site, mean, sd in rows
            if mean or sd
        ]
        told = f"lower bounds of errors by {self.chains} short chains: "
        return told + ("; ".join(bounds) or "0 for every site")


@dataclass(frozen=True)
class EvidenceDiffers(Finding):
    """Two estimates of the log evidence that differ by more than their errors.

    Attributes:
        importance: That from the guide's draws alone, in nats.
        importance_error: Its standard error.
        bridge: That by bridge sampling between the guide's draws and the ends of short chains.
        bridge_error: Its standard error.
    """

    importance: float
    importance_error: float
    bridge: float
    bridge_error: float

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"the log evidence is {self.importance:.2f} ± {self.importance_error:.2f} nats by "
            f"importance sampling, and {self.bridge:.2f} ± {self.bridge_error:.2f} by bridge "
            "sampling with short chains: draws of the guide miss some of the mass that chains find"
        )


@dataclass(frozen=True)
class SinglePrecision(Finding):
    """Draws of a fit in single precision, weighed by their density in double precision.

    Attributes:
        draws: Draws that were compared; 0 where the model does not take double precision.
        spread: Standard deviation of the differences of the log densities, in nats.
        names: Numbers whose mean or sd moves, the worst first.
        shifts: How far the means move, in sds.
        stretches: The sds in single precision over those in double precision.
    """

    draws: int = 0
    spread: float = 0.0
    names: tuple[str, ...] = ()
    shifts: tuple[float, ...] = ()
    stretches: tuple[float, ...] = ()

    @property
    def level(self) -> Level:
        return Level.DOUBT if self.names or self.spread > PRECISION.most else Level.REMARK

    def sentence(self) -> str:
        if not self.draws:
            return "the model takes no double precision, so that rounding was not looked at"
        if self.level is Level.REMARK:
            return ""
        words = [
            f"{name} by {shift:.2f} sd and its sd by a factor of {1 / stretch:.2f}"
            for name, shift, stretch in zip(self.names[: WORDS.named], self.shifts, self.stretches)
        ]
        moved = f", which moves {', '.join(words)}" if words else ""
        return (
            f"single precision changes the log density of the draws by {self.spread:.2g} nats"
            f"{moved}: fit in double precision (torch.set_default_dtype(torch.float64) and data in "
            "it, or Target(..., dtype=torch.float64))"
        )


def _moments(index: float) -> str:
    """Say which moments a tail index leaves."""
    if index < TAIL_CHECK.no_mean:
        return "it has neither mean nor variance; use medians and intervals up to 95 %"
    if index < TAIL_CHECK.no_variance:
        return "it has a mean, and no variance: an sd says nothing; use intervals up to 95 %"
    return "means and sds exist, and an sd of draws converges slowly"


@dataclass(frozen=True)
class OtherData(Finding):
    """A fit was loaded with data or priors that it was not fitted to."""

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return "the guide was fitted to other data or another model than it is judged on"


@dataclass(frozen=True)
class ParamsLeft(Finding):
    """Evidence that the model's own parameters still give away.

    Attributes:
        nats: By how much a short ascent raised it on draws that it had not seen; None where the
            weights of the draws say nothing, or it has no finite gradient.
        error: Standard error of ``nats``.
        names: The parameters.
        looked: Whether they were looked at: not where data cannot be scored whole, or where there
            was no time.
    """

    nats: float | None
    error: float = 0.0
    names: tuple[str, ...] = ()
    looked: bool = True

    @property
    def level(self) -> Level:
        if self.nats is None:
            return Level.DOUBT
        return Level.FAULT if self.nats > VERDICT.gap else Level.REMARK

    def sentence(self) -> str:
        named = ", ".join(map(repr, self.names[:3])) + (", ..." if len(self.names) > 3 else "")
        if not self.looked:
            return (
                f"the parameters {named} were not examined, since there was no time, or too much "
                "data to score all of it: they may be far from where the evidence is highest"
            )
        if self.nats is None:
            return (
                f"whether the parameters {named} are where the evidence is highest could not be "
                "judged, since the weights of the draws say too little, or the density has no "
                "finite gradient there (a scale that runs to 0?)"
            )
        if self.level is Level.REMARK:
            return ""
        return (
            f"the parameters {named} are not where the evidence is highest: {self.nats:.3g} nats "
            "or more are left. Start them closer, or give the fit more steps"
        )


@dataclass(frozen=True)
class PoorRows(Finding):
    """Rows of a plate whose local approximation is not to be trusted.

    Attributes:
        plate: The plate.
        count: How many of the examined rows.
        examined: How many were examined.
        total: How many there are.
        gap: Mean gap of the examined rows, in nats.
        worst: Numbers of the worst, the worst first.
        largest: The gap of the worst, in nats.
    """

    plate: str
    count: int
    examined: int
    total: int
    gap: float
    worst: tuple[int, ...] = ()
    largest: float = 0.0

    @property
    def level(self) -> Level:
        share = self.count / max(1, self.examined)
        if share > PLATES.untrusted_rows:
            return Level.FAULT
        return Level.DOUBT if share > PLATES.doubted_rows else Level.REMARK

    def sentence(self) -> str:
        what = "all" if self.examined == self.total else f"{self.examined} examined"
        if not self.count:
            return ""
        rows = ", ".join(map(str, self.worst))
        return (
            f"{self.count} of {what} rows of the plate {self.plate!r} are not to be trusted (gap "
            f"or k-hat too large); the worst are {rows}, with a gap of {self.largest:.2g} nats"
        )


@dataclass(frozen=True)
class RowsUnseen(Finding):
    """Rows of a plate that could not be examined, or globals that could not be weighed on them.

    Attributes:
        plate: The plate; empty for the globals.
        why: Reason, as a clause.
        grave: Nothing else has looked at what this names.
    """

    plate: str
    why: str
    grave: bool = False

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        if not self.plate:
            return f"the globals were not weighed: {self.why}"
        return f"the rows of the plate {self.plate!r} were not examined: {self.why}"


@dataclass(frozen=True)
class CrossedPlates(Finding):
    """Plates whose rows are tied by data, and drawn independently given the globals.

    Attributes:
        small: The plate of fewer rows.
        large: The other.
    """

    small: str
    large: str

    @property
    def level(self) -> Level:
        return Level.DOUBT

    def sentence(self) -> str:
        return (
            f"the plates {self.large!r} and {self.small!r} cross: their rows are drawn "
            "independently given the globals, and data tie them, so that their spread, and that of "
            f"globals, is too small. Take AutoPlateFlow(model, joint=[{self.small!r}]), which has "
            "these rows with the globals; they may not subsample"
        )


def find(findings: Iterable[Finding], kind: type[_F]) -> _F | None:
    """Return the finding of a kind, or None.

    Example:
        >>> find([MissedModes(2)], MissedModes), find([], MissedModes)
        (MissedModes(count=2), None)
    """
    return next((found for found in findings if isinstance(found, kind)), None)


def with_finding(findings: tuple[Finding, ...], found: Finding) -> tuple[Finding, ...]:
    """Return the findings with this one, in place of an earlier one of its kind.

    Example:
        >>> with_finding((MissedModes(2),), MissedModes(1))
        (MissedModes(count=1),)
    """
    return (*(one for one in findings if type(one) is not type(found)), found)


def to_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Describe findings for a file."""
    return [{"kind": type(one).__name__, **dataclasses.asdict(one)} for one in findings]


def from_json(items: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Read what :func:`to_json` described.

    Raises:
        KeyError: An unknown kind.
        TypeError: Values that are not those of the kind.

    Example:
        >>> from_json(to_json([Improper(("a",)), MissedModes(1)]))
        (Improper(names=('a',)), MissedModes(count=1))
    """
    kinds = {kind.__name__: kind for kind in Finding.__subclasses__()}
    made = []
    for item in items:
        values = {name: _tuples(value) for name, value in item.items() if name != "kind"}
        made.append(kinds[item["kind"]](**values))
    return tuple(made)


def from_settings(settings: Mapping[str, Any], most_modes: int) -> tuple[Finding, ...]:
    """Read the findings of a file of version 0.1, which kept them among its options."""
    found: list[Finding] = []
    if settings.get("improper"):
        found.append(Improper(tuple(settings["improper"])))
    if settings.get("missed_modes"):
        found.append(MissedModes(settings["missed_modes"]))
    modes = settings.get("modes") or []
    alone = sum(mode["starts"] <= 1 for mode in modes)
    found.append(ModeSearch(settings.get("starts", 0), len(modes), alone, len(modes) >= most_modes))
    share, error = settings.get("outside") or (None, 0.0)
    found.append(MassOutside(share, error, unseen=not settings.get("starts")))
    return tuple(found)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
