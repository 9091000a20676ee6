"""How good an approximation is: importance weights, their tail, evidence, reweighted summaries.

Torch only: everything here takes the log importance weights ``log_w = log_p - log_q`` of draws
from the approximation, in nats; the tests of calibration take probabilities of simulated truths.
"""

from __future__ import annotations

from pyro_nfvi.diagnostics._importance import (
    ess,
    iw_gap,
    log_evidence,
    resample,
    weighted_mean,
    weighted_quantile,
    weighted_sd,
)
from pyro_nfvi.diagnostics._khat import TailReading, read_tail
from pyro_nfvi.diagnostics._psis import PSIS, khat_threshold, psis
from pyro_nfvi.diagnostics._verdict import Verdict, judge_weights

__all__ = [
    "PSIS",
    "TailReading",
    "Verdict",
    "ess",
    "iw_gap",
    "judge_weights",
    "khat_threshold",
    "log_evidence",
    "psis",
    "read_tail",
    "resample",
    "weighted_mean",
    "weighted_quantile",
    "weighted_sd",
]
