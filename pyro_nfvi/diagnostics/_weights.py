"""Validation of log weights on entry: which values are weights and which are errors."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.errors import ShapeError, WeightError


def checked(log_w: Tensor) -> Tensor:
    """Return log weights as a float64 vector on the CPU, without a graph.

    Raises:
        ShapeError: Not a vector of floating-point numbers, or empty.
        WeightError: A NaN or +inf among them, or nothing but -inf.
    """
    if log_w.dim() != 1 or not log_w.is_floating_point() or log_w.numel() == 0:
        raise ShapeError(
            "Log weights are one floating-point vector with an entry per draw, log_p - log_q; "
            f"got shape {tuple(log_w.shape)} of {log_w.dtype}."
        )
    # Sums over many draws need double precision whatever the model was computed in, and some
    # devices do not have it.
    log_w = log_w.detach().to(device="cpu", dtype=torch.float64)
    bad = int((log_w.isnan() | (log_w == torch.inf)).sum())
    if bad:
        raise WeightError(
            f"{bad} of {len(log_w)} log weights are NaN or +inf, so log_p or log_q could not be "
            "computed there. Find out why; to count those draws as impossible instead, pass "
            "torch.where(log_w < inf, log_w, -inf)."
        )
    if bool((log_w == -torch.inf).all()):
        raise WeightError(
            f"All {len(log_w)} log weights are -inf: the model gives density 0 to every draw. "
            "Check the support of its priors and the scale of the data."
        )
    return log_w


def normalised(log_w: Tensor) -> Tensor:
    """Check log weights and shift them so that the weights sum to one."""
    log_w = checked(log_w)
    return log_w - torch.logsumexp(log_w, 0)
