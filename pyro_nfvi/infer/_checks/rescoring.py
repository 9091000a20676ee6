"""A loaded fit scored by the model it is given, which need not be the one that was fitted."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._random import stream
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DataWarning
from pyro_nfvi.infer._checks.improper import check_proper
from pyro_nfvi.infer._checks.missed_mass import mass_outside
from pyro_nfvi.infer._checks.pyro_density import opinion_of_pyro
from pyro_nfvi.infer._checks.tails import follow_tails
from pyro_nfvi.infer._findings import MassOutside, ModeSearch, OtherData
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._recipe import RESCORING
from pyro_nfvi.infer._weighted_draws import WeighedDraws, score


def scored_again(fit: Fit, arguments: str | None) -> Fit:
    """Score a fit's draws by its model again, and say so where the densities are others.

    Args:
        fit: The fit, as its file has it, with the model.
        arguments: Fingerprint of the arguments of the model that was fitted, where draws were
            scored on mini-batches, which cannot be compared; None where it is not known.

    Returns:
        The fit, as it was where nothing differs. Else with its draws' new densities and
        deterministic values, and with all that was found out about the old ones looked for again.

    Warns:
        DataWarning: The densities differ.
    """
    log_joint, draws, seed = fit.require_model(), fit.draws, fit.training.settings.seed
    generator = stream(seed, "rescoring", device=draws.z.device)
    with torch.no_grad():
        found, exact = score(log_joint, draws.z, generator)
    scored = WeighedDraws(draws.z, found.log_p, draws.log_q, found.deterministic, exact)
    if draws.exact and exact:
        apart = _apart(draws.log_p, found.log_p)
        same = apart == 0
        difference = f"the log joint of its draws differs by up to {apart:.4g} nats"
    else:
        now = fingerprint(fit.args, fit.kwargs)["arguments"]
        same = arguments is None or now == arguments or (exact and not draws.exact)
        difference = "its arguments are others, and mini-batches cannot be compared"
    if same:
        return dataclasses.replace(fit, draws=scored) if exact and not draws.exact else fit
    warn(
        f"The fit was loaded with other data or another model than it was fitted to: {difference}. "
        "All that is said of it was computed anew, for what was given; the guide is the old one. "
        "To have the fit as it was, give load the same arguments, or no model; for the new data, "
        "fit again.",
        DataWarning,
    )
    findings = (ModeSearch(0), OtherData())
    training = dataclasses.replace(
        fit.training, findings=findings, notes=(*fit.training.notes, f"loaded: {difference}")
    )
    fit = dataclasses.replace(fit, draws=scored, training=training)
    outside = mass_outside(fit.guide.density(), log_joint, scored, seed)
    found_anew = (
        *findings,
        MassOutside.of(outside, unseen=True),
        follow_tails(fit.latent, log_joint, scored),
        opinion_of_pyro(fit),
    )
    training = dataclasses.replace(training, findings=found_anew)
    return check_proper(dataclasses.replace(fit, training=training))


def _apart(before: Tensor, after: Tensor) -> float:
    """Largest difference of two log joints beyond rounding, in nats; 0 where there is none."""
    was, now = before.double(), after.double()
    both = torch.isfinite(was) & torch.isfinite(now)
    equal = (was == now) | (was.isnan() & now.isnan())
    if not bool((both | equal).all()):
        return float("inf")
    if not bool(both.any()):
        return 0.0
    size = float(was[both].abs().max())
    slack = RESCORING.nats + RESCORING.rounding * torch.finfo(before.dtype).eps * size
    apart = float((was - now)[both].abs().max())
    return apart if apart > slack else 0.0
