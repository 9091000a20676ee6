"""``Training``: the record of a training, as a fit keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._timing import Timing
from pyro_nfvi.infer._findings import Finding
from pyro_nfvi.infer._settings import Settings


@dataclass(frozen=True)
class Training:
    """Record of the training of a fit; plain numbers and words, kept in its file.

    Attributes:
        losses: Negative bound of each step, in nats: of the objective that was trained (for a
            tempered one, the ELBO).
        why_stopped: Reason for which training ended.
        engine: Name of the engine that ran the steps.
        engine_reason: Reason for its choice.
        settings: Options of the fit, and what it chose.
        notes: Events on the way, a line each.
        findings: Findings about the fit beyond its weights, for the verdict.
        timing: Seconds of the call, part by part; written at its end.
    """

    losses: Tensor
    why_stopped: StopReason
    engine: str
    engine_reason: str
    settings: Settings
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    timing: Timing = field(default_factory=Timing)
