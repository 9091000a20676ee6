"""The verdict on a fit: its weights, and what was found beyond its own draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pyro_nfvi.diagnostics import Verdict, judge_weights
from pyro_nfvi.gaussian import MOST_MODES
from pyro_nfvi.infer.outside import too_much

if TYPE_CHECKING:
    from pyro_nfvi.infer.fit import Fit

__all__ = ["verdict"]


def verdict(fit: Fit) -> Verdict:
    """See :attr:`Fit.verdict`."""
    settings = fit.training.settings
    faults = []
    if settings.get("improper"):
        faults.append(f"the posterior is improper in {', '.join(settings['improper'])}")
    if settings.get("missed_modes"):
        count = settings["missed_modes"]
        verb = "modes were found and are" if count > 1 else "mode was found and is"
        faults.append(f"{count} other {verb} not reached")
    modes = settings.get("modes") or []
    if len(modes) >= MOST_MODES:
        faults.append(f"{len(modes)} modes were found, as many as are kept: there may be more")
    outside = settings.get("outside")
    if outside is not None and too_much(outside):
        faults.append(
            f"about {100 * outside[0]:.0f} % of the posterior lies where the guide has next to "
            "nothing: a tail or a mode that it does not reach"
        )
    if fit.why_stopped == "diverged":
        faults.append("the fit diverged")
    if not fit.draws.exact:
        faults.append(
            "draws were scored on one mini-batch alone (several plates subsample, or there is too "
            "much data), so nothing can be said: save the fit, and load(path, model=model, "
            "args=..., kwargs=...) with subsample_size=None"
        )
    word = judge_weights(
        fit.draws.z, fit.draws.log_w, name=fit.latent.at, faults=faults, values=_seen(fit)
    )
    unseen = []
    if fit.why_stopped in ("max_steps", "max_seconds") and any(
        told in fit.why_stopped.detail for told in ("still rising", "would bring about")
    ):
        unseen.append(f"training was cut short: {fit.why_stopped.detail}")
    if faults:
        return Verdict(word, [*word.reasons, *unseen], word.next_step)
    if modes:
        unseen.append(
            f"{len(modes)} modes were found from {settings['starts']} starts; one to which no "
            "start came is missing"
        )
    elif settings.get("starts"):
        unseen.append(
            f"none of {settings['starts']} starts led to another mode; one to which no start came "
            "is missing"
        )
    alone = sum(mode["starts"] <= 1 for mode in modes)
    if alone:
        unseen.append(f"{alone} of the modes were found by one start alone: there may be more")
    if not settings.get("starts"):
        unseen.append("no starts were compared, so another mode would not have been seen")
    if settings.get("outside") is None:
        unseen.append(
            "wide draws said nothing about mass beyond the guide's own (many latents, a narrow "
            "funnel, or a model that cannot be run out there)"
        )
    return Verdict(word, [*word.reasons, *unseen], word.next_step)


def _seen(fit: Fit) -> Tensor:
    """Draws with each bounded number in its own space, where it has a place of its own there."""
    seen = fit.draws.z.clone()
    values, _ = fit.latent.constrain(fit.draws.z)
    for site in fit.latent.records:
        if site.shape == site.unconstrained_shape:
            seen[:, site.start : site.stop] = values[site.name].reshape(len(seen), -1)
    return seen
