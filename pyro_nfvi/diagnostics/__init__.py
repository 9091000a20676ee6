"""How good an approximation is: importance weights, their tail, evidence, reweighted summaries.

Torch only: everything here takes the log importance weights ``log_w = log_p - log_q`` of draws
from the approximation, in nats.
"""

from __future__ import annotations

from pyro_nfvi.diagnostics.importance import (
    ess,
    iw_gap,
    log_evidence,
    resample,
    weighted_mean,
    weighted_quantile,
    weighted_sd,
)
from pyro_nfvi.diagnostics.psis import PSIS, khat_threshold, psis
from pyro_nfvi.diagnostics.verdict import Verdict, judge_weights

__all__ = [
    "PSIS",
    "Verdict",
    "ess",
    "iw_gap",
    "judge_weights",
    "khat_threshold",
    "log_evidence",
    "psis",
    "resample",
    "weighted_mean",
    "weighted_quantile",
    "weighted_sd",
]
