r"""The one rule by which a k-hat is read: verdict, model selection, reports and pages follow it.

=====================  ===========================================================================
k-hat                  what it says of S weights
=====================  ===========================================================================
without meaning        the largest weight is within 5 % of the mean: there is no tail
of no account          the gap is below 0.05 nats and 90 % of the draws are effective, all the same
below 0.5              the weights have a variance: the approximation itself is close
below the threshold    :math:`\min(1 - 1/\log_{10} S, 0.7)`: reweighted draws can be relied on
below 1                the weights have a mean, but S of them are too few to find it
1 and above            the weights have no mean: reweighting cannot help
=====================  ===========================================================================

Sources: Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72), sections 3.2.3 and 3.2.4, for the
thresholds; Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 3.1, for 0.5 as the mark
of a close approximation. That even weights come first is our own: with no weight 5 % above the
mean, a tail of shape 2 would have to be seen from ten thousand times as many draws before one of
them weighed as much as a hundredth of all of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._psis import khat_threshold, psis
from pyro_nfvi.diagnostics._recipe import KHAT, VERDICT
from pyro_nfvi.diagnostics._weights import checked


@dataclass(frozen=True)
class TailReading:
    """Reading of the tail of importance weights: the one place that compares k-hat with numbers.

    Attributes:
        khat: Shape of the tail.
        num_draws: Number S of the weights.
        excess: How far the largest weight is above the mean, as a share of it.
        effective: Share of the draws that is effective, where it is known.
        gap: Gap between evidence and ELBO in nats, where it is known.
    """

    khat: float
    num_draws: int
    excess: float = math.inf
    effective: float = math.nan
    gap: float = math.inf

    @property
    def means_nothing(self) -> bool:
        """True if the weights are so even that their tail is without consequence."""
        return self.excess <= KHAT.even

    @property
    def nearly_even(self) -> bool:
        """True if so little is between the weights that their tail, whatever its shape, can wait.

        A shape is that of the largest fifth of the weights beyond the rest, on whatever scale.
        """
        return self.gap < VERDICT.small_gap and self.effective > VERDICT.even

    @property
    def close(self) -> bool:
        """True if the approximation itself is close, as far as its own draws see."""
        return self.means_nothing or self.khat < KHAT.close

    @property
    def reliable(self) -> bool:
        """True if reweighted draws can be relied on."""
        return self.means_nothing or self.khat < khat_threshold(max(2, self.num_draws))

    @property
    def has_mean(self) -> bool:
        """True if the weights have a mean, so that more draws would help."""
        return self.means_nothing or self.khat < KHAT.no_mean

    def __str__(self) -> str:
        if math.isnan(self.khat):
            return "k-hat unknown"
        if self.means_nothing:
            return f"k-hat without meaning (weights even to {max(self.excess, 1e-16):.0e})"
        if self.nearly_even and not self.close:
            return f"k-hat {self.khat:.2f}, of no account in weights that are nearly even"
        return f"k-hat {self.khat:.2f}"


def read_tail(
    log_w: Tensor,
    khat: float | None = None,
    *,
    effective: float = math.nan,
    gap: float = math.inf,
) -> TailReading:
    """Read the tail of importance weights.

    Args:
        log_w: Log weights (S,) in nats, raw.
        khat: Their k-hat, where :func:`psis` gave it before.
        effective: Share of the draws that is effective, where it is known.
        gap: Gap between evidence and ELBO in nats, where it is known.

    Cost:
        One sort of S numbers.

    Raises:
        ShapeError: Not one vector.
        WeightError: NaN or +inf among the weights, or all of them -inf.

    Example:
        >>> import torch
        >>> from pyro_nfvi.diagnostics._khat import read_tail
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> log_w = normal.icdf((torch.arange(2000.0, dtype=torch.float64) + 0.5) / 2000)
        >>> str(read_tail(log_w)), read_tail(log_w).reliable
        ('k-hat 0.28', True)
        >>> str(read_tail(1e-8 * log_w))
        'k-hat without meaning (weights even to 3e-08)'
    """
    checked_w = checked(log_w)
    mean = torch.logsumexp(checked_w, 0) - math.log(len(checked_w))
    excess = float(torch.expm1(checked_w.max() - mean))
    khat = psis(log_w).khat if khat is None else khat
    return TailReading(khat, len(checked_w), max(excess, 0.0), effective, gap)
