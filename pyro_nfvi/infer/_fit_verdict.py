"""The verdict on a fit: its weights, and what was found beyond its own draws."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._verdict import Cause, Verdict, judge_weights
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._checks.tails import seen
from pyro_nfvi.infer._findings import (
    ChainsMove,
    EvidenceDiffers,
    HeavyTails,
    LeftOut,
    Level,
    MovedMoments,
    ShortTails,
)
from pyro_nfvi.infer._fitted import FittedPosterior


def verdict(fit: FittedPosterior) -> Verdict:
    """See :attr:`Fit.verdict`."""
    sentences: dict[Level, list[str]] = {level: [] for level in Level}
    for found in fit.training.findings:
        if sentence := found.sentence():
            sentences[found.level].append(sentence)
    faults = sentences[Level.FAULT]
    why = fit.why_stopped
    if why == "diverged":
        faults.append("the fit diverged")
    if not fit.draws.exact:
        faults.append(
            "draws were scored on one mini-batch alone (several plates subsample, or there is too "
            "much data), so nothing can be said: save the fit, and load(path, model=model, "
            "args=..., kwargs=...) with subsample_size=None"
        )
    word = judge_weights(
        fit.draws.z,
        fit.draws.log_w,
        name=fit.latent.at,
        faults=faults,
        doubts=sentences[Level.DOUBT],
        values=seen(fit.latent, fit.draws.z),
        mode=_modes(fit),
        finite_variance=_finite_variance(fit),
    )
    remarks = []
    if why in ("max_steps", "max_seconds") and why.unfinished:
        remarks.append(f"training was cut short: {why.detail}")
    if not faults:  # or else what could not be seen is of no interest
        remarks += sentences[Level.REMARK]
    next_step = word.next_step
    if chains_would_help(fit, word):
        next_step = f"{next_step} {_CHAINS}"
    return Verdict(word, [*word.reasons, *remarks], next_step, word.cause)


#: Findings that are no reason against chains: they are about shape, which chains correct, or about
#: training; tails without a variance have none in exact draws either.
_NOT_AGAINST_CHAINS = (ChainsMove, EvidenceDiffers, HeavyTails, LeftOut, MovedMoments, ShortTails)

_CHAINS = (
    "Or draw exactly: fit.mcmc() starts from this fit, and corrects its shape, which is what is "
    "wrong here."
)


def chains_would_help(fit: FittedPosterior, word: Verdict) -> bool:
    """Tell whether exact chains from the fit would cure what its verdict names.

    They would where its shape is wrong: by the weights, or by tails and moments. They would not
    where mass may be unseen, since they do not find it.

    Args:
        fit: The fit.
        word: Its verdict by weights and findings.
    """
    log_joint = fit.log_joint
    if log_joint is None or log_joint.subsampled or not isinstance(fit.guide, AutoFlow):
        return False
    if fit.why_stopped == "diverged" or not fit.draws.exact:
        return False
    grave = [found for found in fit.training.findings if found.level > Level.REMARK]
    if any(not isinstance(found, _NOT_AGAINST_CHAINS) for found in grave):
        return False
    shape = any(
        isinstance(found, (ChainsMove, EvidenceDiffers, MovedMoments, ShortTails))
        for found in grave
    )
    return word.cause is Cause.WEIGHTS or (word.cause is Cause.DOUBT and shape)


def _finite_variance(fit: FittedPosterior) -> bool:
    """Tell whether the density's tails were followed in all numbers, and all have a variance."""
    tails = [found for found in fit.training.findings if isinstance(found, HeavyTails)]
    return bool(tails) and all(
        found.looked and not found.unknown and not found.without_variance for found in tails
    )


def _modes(fit: FittedPosterior) -> Tensor | None:
    """Number of the component that each draw most likely comes from; None without several."""
    density = fit.guide.density()
    if not isinstance(density, MixtureDensity):
        return None
    with torch.no_grad():
        return density.responsibilities(fit.draws.z).argmax(-1)
