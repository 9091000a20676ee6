"""Verdict on a fit: one word with its reasons, from its importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._importance import ess, iw_gap
from pyro_nfvi.diagnostics._khat import read_tail
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.diagnostics._recipe import VERDICT
from pyro_nfvi.errors import WeightError

#: What a verdict may say, the best first.
VERDICTS = GOOD, USABLE, BAD = "good", "usable with reweighting", "do not trust"


class Cause(Enum):
    """Cause of a verdict, as far as decisions read it."""

    #: Nothing that keeps the draws from being used as they are; or not known.
    NONE = "none"
    #: Something that is known to be wrong from elsewhere.
    FAULT = "fault"
    #: Something that could not be ruled out.
    DOUBT = "doubt"
    #: Tails of the posterior that leave no variance.
    HEAVY_TAILS = "heavy tails"
    #: Importance weights: the shape of the approximation is not that of the posterior.
    WEIGHTS = "weights"


class Verdict(str):
    """One of ``"good"``, ``"usable with reweighting"`` and ``"do not trust"``.

    Compare it as a string; ``reasons`` says what was found, and ``next_step`` what to do.

    Example:
        >>> from pyro_nfvi.diagnostics._verdict import Verdict
        >>> verdict = Verdict("good", ["k-hat 0.2"], "Nothing.")
        >>> verdict == "good", verdict.reasons
        (True, ('k-hat 0.2',))
    """

    reasons: tuple[str, ...]
    next_step: str
    cause: Cause

    def __new__(
        cls,
        word: str,
        reasons: Sequence[str] = (),
        next_step: str = "",
        cause: Cause = Cause.NONE,
    ) -> Verdict:
        verdict = super().__new__(cls, word)
        verdict.reasons, verdict.next_step = tuple(reasons), next_step
        verdict.cause = cause
        return verdict

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        return _html.verdict(self, self.reasons, self.next_step)

    def __reduce__(self) -> tuple[type[Verdict], tuple[str, tuple[str, ...], str, Cause]]:
        return type(self), (str(self), self.reasons, self.next_step, self.cause)


def judge_weights(
    z: Tensor,
    log_w: Tensor,
    *,
    name: Callable[[int], str] = str,
    faults: Sequence[str] = (),
    doubts: Sequence[str] = (),
    values: Tensor | None = None,
    mode: Tensor | None = None,
    finite_variance: bool = False,
) -> Verdict:
    r"""Judge an approximation by the importance weights of its draws.

    - **good**: a light tail (:class:`TailReading`: :math:`\hat k < 0.5`, or weights so even that
      :math:`\hat k` means nothing) with a gap between evidence and ELBO below 0.1 nats, or a gap
      below 0.05 with at least 90 % of the draws effective; reweighting moves no mean by more
      than 0.1 sd (and three of its standard errors) and no sd by more than 15 %; and no number
      has tails so heavy that it may have no variance.
    - **usable with reweighting**: :math:`\hat k < \min(1 - 1/\log_{10} S, 0.7)`, a gap below 1 nat,
      100 effective draws; or a gap below 0.1 with at least 80 % of the draws effective.
    - **do not trust**: all else, and whatever comes with a fault.

    Args:
        z: Draws (S, D).
        log_w: Their log importance weights (S,), in nats.
        name: Names coordinate i of z for the reasons.
        faults: What is known to be wrong from elsewhere: a mode that was missed, a posterior
            that is improper.
        doubts: What keeps the verdict from being good, and is no fault: a check that could not be
            made.
        values: The draws as the user sees them, in the same order (S, D), where that is not z:
            a scale whose logarithm is z. Their tails are looked at too.
        mode: Number of the mode that each draw belongs to (S,), where there are several: tails are
            those of each mode about its own median. A light mode far away is no tail.
        finite_variance: Every number is known to have a variance, such as by the tails of the
            density. Where the weights are even, draws alone then keep no verdict from being good;
            a reason names numbers whose sds rest on rare draws.

    Cost:
        O(S D), and one sort of the weights.

    Source: k-hat as in Vehtari et al. 2024, arXiv:1507.02646, and Yao et al. 2018,
    arXiv:1802.02538; that k-hat alone cries wolf where weights are nearly even is our own finding.

    Example:
        >>> import torch
        >>> from pyro_nfvi.diagnostics import judge_weights
        >>> z = torch.randn(2000, 2)
        >>> judge_weights(z, torch.zeros(2000))
        'good'
        >>> print(judge_weights(z, 2.0 * z.square().sum(-1)))
        do not trust
    """
    if faults:
        return Verdict(BAD, [*faults, *doubts], _NEXT_FAULT, Cause.FAULT)
    scored = torch.isfinite(log_w)
    unscored = 1.0 - float(scored.double().mean())
    try:
        smoothed = psis(log_w)
        # One impossible draw makes the ELBO -inf; so few of them are judged by their share.
        gap = iw_gap(log_w[scored])
    except WeightError as error:
        nothing = f"the weights of the draws say nothing: {error}"
        return Verdict(BAD, [nothing], _NEXT_FIT, Cause.WEIGHTS)
    count = ess(smoothed.log_weights)
    tail = read_tail(log_w, smoothed.khat, effective=count / len(z), gap=gap)
    numbers = (
        f"{tail}, gap between evidence and ELBO {gap:.3g} nats, {count:.0f} of "
        f"{len(z)} draws effective"
    )
    if unscored > VERDICT.unscored:
        share = f"{100 * unscored:.1f} % of the draws have no density under the model"
        return Verdict(BAD, [share, numbers], _NEXT_FIT, Cause.WEIGHTS)
    moved = _moved(z, smoothed.log_weights, count, name)
    if ((tail.close and gap < VERDICT.gap) or tail.nearly_even) and not moved:
        # Only where weights are good can they say anything of tails.
        heavy = _heavy(
            z, log_w, VERDICT.surely_no_variance if tail.close else VERDICT.no_variance, mode
        )
        if values is not None:
            heavy = sorted({*heavy, *_heavy(values, log_w, VERDICT.surely_no_variance, mode)})
        if not heavy:
            if doubts:
                return Verdict(USABLE, [numbers, *doubts], _NEXT_DOUBT, Cause.DOUBT)
            return Verdict(GOOD, [numbers], "Use the draws as they are.")
        names = [name(i) for i in heavy[: VERDICT.named]] + ["..."] * (len(heavy) > VERDICT.named)
        if finite_variance and tail.nearly_even and not doubts:
            rare = (
                f"the sds of {', '.join(names)} rest on rare draws far out: quantiles are known "
                "better than means and sds of so many draws"
            )
            return Verdict(GOOD, [numbers, rare], "Use the draws as they are.")
        told = (
            f"the tails of {', '.join(names)} are so heavy that there may be no variance: "
            "quantiles say more than means and sds"
        )
        return Verdict(USABLE, [numbers, told, *doubts], _NEXT_HEAVY, Cause.HEAVY_TAILS)
    even = gap < VERDICT.gap and count > VERDICT.mostly * len(z)
    if (tail.reliable and gap < VERDICT.usable_gap and count >= VERDICT.usable_ess) or even:
        return Verdict(USABLE, [numbers, *moved, *doubts], _NEXT_WEIGHT, Cause.WEIGHTS)
    return Verdict(BAD, [numbers, *moved, *doubts], _NEXT_FIT, Cause.WEIGHTS)


_NEXT_FAULT = "See the reasons; no reweighting repairs this."
_NEXT_DOUBT = "See the reasons: the weights are good, and cannot see what these name."
_NEXT_WEIGHT = (
    "Use fit.resample(n), fit.summary(reweighted=True) and to_arviz(reweighted=True); or give the "
    "fit more steps or a larger flow."
)
_NEXT_HEAVY = "Use medians and intervals; the draws are right where there are any."
_NEXT_FIT = (
    "Give the fit more steps (max_steps) or a larger flow, or write the model in another "
    "parametrisation (non-centred scales)."
)


def _heavy(z: Tensor, log_w: Tensor, most: float, mode: Tensor | None) -> list[int]:
    """Find the numbers whose tails in the posterior are too heavy for a variance."""
    ok = torch.isfinite(z).all(-1) & torch.isfinite(log_w)
    z, log_w = z[ok].double(), log_w[ok].double()
    mode = torch.zeros_like(log_w) if mode is None else mode[ok]
    away = torch.empty_like(z)
    for one in mode.unique():
        away[mode == one] = z[mode == one] - z[mode == one].median(0).values
    # What a draw adds to the second moment.
    terms = away.abs().log().mul(2) + log_w.unsqueeze(-1)
    varied = [i for i in range(z.shape[-1]) if bool((terms[:, i] > -math.inf).any())]
    return [i for i in varied if psis(terms[:, i]).khat > most]


def _factor(factor: float) -> str:
    """Say by how much a number at least 1 multiplies."""
    if factor < 3:
        return f"{100 * (factor - 1):.0f} %"
    return f"a factor of {factor:.2g}" if factor < 1e3 else "a factor of more than 1000"


def _moved(z: Tensor, log_weights: Tensor, count: float, name: Callable[[int], str]) -> list[str]:
    """Name the numbers that reweighting moves, the worst first."""
    z = z.double()
    weights = log_weights.double().exp().unsqueeze(-1)
    ok = torch.isfinite(z).all(-1)
    z, weights = z[ok], weights[ok]
    mean = z.mean(0)
    rounding = (1e-12 * mean.abs()).clamp_min(1e-300)
    sd = z.std(0).maximum(rounding)
    other = (weights * z).sum(0)
    spread = (weights * (z - other).square()).sum(0).sqrt()
    shift = (other - mean).abs() / sd
    stretch = (spread.maximum(rounding) / sd).log().abs()
    noise = 3 / math.sqrt(max(count, 1.0))
    # What reweighting does to noise alone is no fault of the fit.
    worst = torch.maximum(shift / max(VERDICT.mean, noise), stretch / max(VERDICT.sd, noise))
    order = worst.argsort(descending=True)[: VERDICT.named].tolist()
    return [
        f"reweighting moves {name(i)} by {float(shift[i]):.2f} sd and its sd by "
        f"{_factor(math.exp(float(stretch[i])))}"
        for i in order
        if worst[i] > 1
    ]
