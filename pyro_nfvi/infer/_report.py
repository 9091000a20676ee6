"""The report of a fit."""

from __future__ import annotations

import math

from pyro_nfvi import _html
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.infer._findings import ChainsMove, find
from pyro_nfvi.infer._fitted import FittedPosterior


def report(fit: FittedPosterior) -> str:
    """Describe the guide, its training, and its quality, a line each."""
    training, draws, latent = fit.training, fit.draws, fit.latent
    settings = training.settings
    sites = ", ".join(latent.sites)
    count = sum(p.numel() for p in fit.guide.parameters())
    lines = [
        f"{latent.dim} latents ({sites if len(sites) < 60 else f'{len(latent.sites)} sites'}); "
        f"guide {type(fit.guide).__name__}({settings.flow}), {count} parameters",
        f"objective {settings.objective}, {settings.num_particles} particles, seed {settings.seed}"
        if settings.objective
        else f"no steps of training, seed {settings.seed}",
        f"particles by {settings.particles_by} ({settings.particles_why})",
        f"engine {training.engine}: {training.engine_reason}",
        f"stopped: {training.why_stopped}. {training.why_stopped.detail}",
        f"time: {training.timing}, {training.timing.steps} steps of training",
        f"ELBO {fit.elbo:.3f} ± {fit.elbo_se:.3f} nats",
    ]
    if math.isnan(fit.khat):
        lines.append(f"k-hat unknown: {fit._no_weights()}")
    else:
        value, error = fit.log_evidence()
        lines.append(
            f"{fit.tail}, ESS {fit.ess:.0f} of {len(draws.z)} draws, "
            f"log evidence {value:.3f} ± {error:.3f} nats"
        )
    if draws.num_bad:
        lines.append(f"{draws.num_bad} of {len(draws.z)} draws have no finite density")
    moved = find(training.findings, ChainsMove)
    if moved is not None and moved.chains:
        lines.append(moved.by_site())
    verdict = fit.verdict
    lines.append(f"verdict: {verdict} ({'; '.join(verdict.reasons)}). {verdict.next_step}")
    return "\n".join([*lines, *training.notes])


def report_html(fit: FittedPosterior, draws: TensorDict) -> str:
    """Describe a fit for a notebook: verdict, figures, marginals of draws ``site -> (S, *shape)``.

    What the verdict says is of the weighted draws; the histograms are of the guide's.
    """
    training, verdict = fit.training, fit.verdict
    guide = f"{type(fit.guide).__name__}({training.settings.flow})"
    rows = [
        ("guide", f"{guide}, {fit.latent.dim} latents"),
        ("ELBO", f"{fit.elbo:.3f} ± {fit.elbo_se:.3f} nats"),
    ]
    if not math.isnan(fit.khat):
        value, error = fit.log_evidence()
        rows.append(("log evidence", f"{value:.3f} ± {error:.3f} nats"))
        rows.append(("importance weights", f"{fit.tail}, ESS {fit.ess:.0f} of {len(fit.draws.z)}"))
    rows.append(("training", f"{len(training.losses)} steps, {training.why_stopped}"))
    rows.append(("time", f"{training.timing.total:.1f} s"))
    shown = _html.verdict(verdict, verdict.reasons, verdict.next_step)
    parts = (shown, _html.table((), rows), _html.marginals(draws))
    return _html.card(type(fit).__name__, *parts)
