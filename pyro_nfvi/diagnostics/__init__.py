"""Importance weights: their tail, effective draws, evidence and reweighted summaries.

Torch only. All take the log importance weights ``log_w = log_p - log_q`` of draws from the
approximation, in nats.
"""

from __future__ import annotations

from pyro_nfvi.diagnostics._importance import (
    ess,
    log_evidence,
    resample,
    weighted_mean,
    weighted_quantile,
    weighted_sd,
)
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.diagnostics._verdict import judge_weights

__all__ = [
    "ess",
    "judge_weights",
    "log_evidence",
    "psis",
    "resample",
    "weighted_mean",
    "weighted_quantile",
    "weighted_sd",
]
