"""Rendering of an importance-sampled NLL: one for commands, files, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pyro_nfvi.diagnostics._psis import khat_threshold
from pyro_nfvi.vae._recipe import EVALUATION

#: Above this share of images an NLL without a stored share counts as doubtful.
_UNKNOWN = math.nan


class PerImage(Protocol):
    """Importance-sampled numbers of each image, such as an ``NLL`` has."""

    @property
    def value(self) -> Tensor:
        """NLL in nats."""

    @property
    def ess(self) -> Tensor:
        """Effective number of draws."""

    @property
    def khat(self) -> Tensor:
        """Pareto's k-hat."""

    @property
    def bound(self) -> Tensor:
        """Negative ELBO of the same draws, in nats."""

    @property
    def num_samples(self) -> int:
        """Draws per image."""

    @property
    def temperatures(self) -> int:
        """Temperatures of annealed draws; 0 for importance sampling."""


@dataclass(frozen=True)
class NLLSummary:
    """Means of an NLL over images, in nats, with what says how far they can be trusted.

    Attributes:
        mean: Mean NLL.
        se: Its standard error over images; None for a single image.
        negative_elbo: Mean -ELBO of the same images and the same draws.
        gain: Mean of -ELBO minus NLL, image by image; not below 0.
        gain_se: Its standard error, paired: the spread of the differences; None where unknown.
        samples: Importance samples per image.
        images: Number of images.
        of: How these were chosen: ``"all"``, ``"a seeded subset"`` or ``"the first"``.
        ess_median: Median effective number of draws.
        khat_bad: Share of images whose k-hat is above ``khat_limit``; NaN where it was not stored.
        khat_limit: Largest k-hat at which so many draws can be trusted.
        temperatures: Temperatures of annealed draws; 0 for importance sampling.
    """

    mean: float
    se: float | None
    negative_elbo: float
    gain: float
    gain_se: float | None
    samples: int
    images: int
    of: str
    ess_median: float
    khat_bad: float
    khat_limit: float
    temperatures: int = 0

    @classmethod
    def of_nll(cls, nll: PerImage, of: str = "all") -> NLLSummary:
        """Summarise the NLLs of single images."""
        count, gains = len(nll.value), nll.bound - nll.value
        several = count > 1
        # So few draws that no k-hat would do: theirs is infinite.
        limit = max(khat_threshold(max(nll.num_samples, 2)), 0.0)
        return cls(
            mean=float(nll.value.mean()),
            se=float(nll.value.std()) / math.sqrt(count) if several else None,
            negative_elbo=float(nll.bound.mean()),
            gain=float(gains.mean()),
            gain_se=float(gains.std()) / math.sqrt(count) if several else None,
            samples=nll.num_samples,
            images=count,
            of=of,
            ess_median=float(nll.ess.median()),
            # A k-hat that is NaN is not below the limit.
            khat_bad=float((~(nll.khat <= limit)).double().mean()),
            khat_limit=limit,
            temperatures=nll.temperatures,
        )

    @classmethod
    def from_record(cls, held: Mapping[str, Any]) -> NLLSummary | None:
        """Read what ``record`` wrote, of earlier versions too; None where there is no NLL."""
        if held.get("nll") is None:
            return None
        elbo = held.get("nll_negative_elbo", math.nan)
        return cls(
            mean=held["nll"],
            se=held.get("nll_se"),
            negative_elbo=elbo,
            gain=held.get("nll_gain", elbo - held["nll"]),
            gain_se=held.get("nll_gain_se"),
            samples=held["nll_samples"],
            images=held["nll_images"],
            # Before subsets were drawn, the first images were taken.
            of=held.get("nll_of", "all" if held["nll_images"] == held["images"] else "the first"),
            ess_median=held.get("ess_median", math.nan),
            khat_bad=held.get("khat_bad", held.get("khat_above_0.7", _UNKNOWN)),
            khat_limit=held.get("khat_limit", 0.7),
            temperatures=held.get("nll_temperatures", 0),
        )

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        return {
            "nll": self.mean,
            "nll_se": self.se,
            "nll_negative_elbo": self.negative_elbo,
            "nll_gain": self.gain,
            "nll_gain_se": self.gain_se,
            "nll_samples": self.samples,
            "nll_images": self.images,
            "nll_of": self.of,
            "ess_median": self.ess_median,
            "khat_bad": self.khat_bad,
            "khat_limit": self.khat_limit,
            "nll_temperatures": self.temperatures,
        }

    @property
    def label(self) -> str:
        """The quantity with its number of samples: ``NLL(S)``, ``NLL(AIS, S x T)``."""
        return label_of(self.samples, self.temperatures)

    @property
    def trusted(self) -> bool:
        """Tell whether few images have a k-hat above the limit."""
        return self.khat_bad <= EVALUATION.doubtful_share

    @property
    def which(self) -> str:
        """The images, in words."""
        count = f"{self.images} image{'s' * (self.images != 1)}"
        return {"all": count, "the first": f"the first {count}"}.get(
            self.of, f"{self.of} of {count}"
        )

    @property
    def weights(self) -> str:
        """Effective draws and k-hat, in words; stands beside every NLL."""
        share = "unknown" if math.isnan(self.khat_bad) else f"{self.khat_bad:.0%}"
        return (
            f"ESS {self.ess_median:.0f} of {self.samples} (median); k-hat above "
            f"{self.khat_limit:.2g} on {share} of images"
        )

    @property
    def warning(self) -> str:
        """Return what follows from too large a k-hat; empty where the number can be trusted."""
        if self.trusted:
            return ""
        return (
            f"{self.label} is not to be relied on ({self.weights}): it is likely too large, by an "
            f"unknown amount, and its standard error means nothing. {self.cure}, and compare "
            "models by -ELBO."
        )

    def sentence(self) -> str:
        """Say the number with all that belongs to it."""
        text = (
            f"{self.label} {_with(self.mean, self.se)} nats, {self.which}; -ELBO of the same "
            f"{self.negative_elbo:.2f}, a difference of {_with(self.gain, self.gain_se)}; "
            f"{self.weights}"
        )
        return text if self.trusted else f"{text}: likely too large. {self.cure}"

    @property
    def cure(self) -> str:
        """Say what makes the number one to rely on."""
        if self.temperatures:
            return "Take more temperatures (--temperatures) or chains (--nll-samples)"
        return (
            "Anneal (method='ais', --nll-method ais), take more samples (--nll-samples) or a "
            "posterior that fits better"
        )


def label_of(samples: int, temperatures: int) -> str:
    """Return the name of an NLL in tables.

    Example:
        >>> label_of(5000, 0), label_of(64, 200)
        ('NLL(5000)', 'NLL(AIS, 64 x 200)')
    """
    return f"NLL(AIS, {samples} x {temperatures})" if temperatures else f"NLL({samples})"


def _with(value: float, error: float | None) -> str:
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def doubt_of(summaries: Sequence[NLLSummary]) -> str:
    """Say effective draws and k-hat of several runs in a cell of a table.

    Example:
        >>> one = NLLSummary(90.0, 1.0, 95.0, 5.0, 0.1, 5000, 300, "all", 12.0, 0.98, 0.7)
        >>> doubt_of([one])
        'ESS 12 of 5000; k-hat > 0.7 on 98%: not reliable'
    """
    ess = [one.ess_median for one in summaries]
    bad = [one.khat_bad for one in summaries]
    first = summaries[0]
    share = "an unknown share" if any(map(math.isnan, bad)) else _span(bad, "{:.0%}")
    text = (
        f"ESS {_span(ess, '{:.0f}')} of {first.samples}; k-hat > {first.khat_limit:.2g} on {share}"
    )
    return text if all(one.trusted for one in summaries) else f"{text}: not reliable"


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
