"""The verdict on a fit: its weights, and what was found beyond its own draws."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._verdict import Verdict, judge_weights
from pyro_nfvi.distributions._mixture import MixtureDensity
from pyro_nfvi.infer._checks.tails import seen
from pyro_nfvi.infer._findings import Level
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
    )
    remarks = []
    if why in ("max_steps", "max_seconds") and why.unfinished:
        remarks.append(f"training was cut short: {why.detail}")
    if not faults:  # or else what could not be seen is of no interest
        remarks += sentences[Level.REMARK]
    return Verdict(word, [*word.reasons, *remarks], word.next_step)


def _modes(fit: FittedPosterior) -> Tensor | None:
    """Number of the component that each draw most likely comes from; None without several."""
    density = fit.guide.density()
    if not isinstance(density, MixtureDensity):
        return None
    with torch.no_grad():
        return density.responsibilities(fit.draws.z).argmax(-1)
