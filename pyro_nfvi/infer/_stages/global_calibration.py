"""The globals of a fit of rows, moved to where re-drawn rows weigh them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyro_nfvi.diagnostics._importance import ess, weighted_mean, weighted_sd
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import GlobalWeights
from pyro_nfvi.infer._recipe import PLATES


def calibrate_globals(
    guide: AutoPlateFlow,
    weights: GlobalWeights,
    weigh: Callable[[], GlobalWeights],
) -> tuple[GlobalWeights, int]:
    r"""Shift and stretch each global number to its weighted mean and sd, while that helps.

    The bound of globals and rows together is flat in what it says of the globals alone: where rows
    do not follow the globals within their sd, it draws these narrower than they are, by a nat of a
    hundred thousand; and mini-batches make them wander by as much. The weights of globals with
    rows integrated out see both. A move counts where it makes more of the draws effective.

    Args:
        guide: The guide, which is moved in place.
        weights: Its draws of globals, weighed on all rows.
        weigh: Weighs them anew.

    Returns:
        The weights of the guide as it is then, and how often it was moved.

    Cost:
        One more pass over the rows for each move, at most ``calibrations``.

    Source: moment matching by importance weights, Paananen et al. 2021, Statistics and Computing
    31(16), arXiv:1906.08850.
    """
    block = next((one for one in guide.layout.blocks if not one.plates), None)
    moves = 0
    while block is not None and moves < PLATES.calibrations:
        try:
            log_weights = psis(weights.log_p - weights.log_q).log_weights
        except WeightError:
            break
        z = weights.z.double()
        mean, sd = weighted_mean(z, log_weights), weighted_sd(z, log_weights)
        here, wide = z.mean(0), z.std(0)
        shift, ratio = (mean - here) / wide, (sd / wide).clamp(0.5, 2.0)
        small = float(shift.abs().max()) < PLATES.least_shift
        if small and float(ratio.log().abs().max()) < PLATES.least_shift:
            break
        if ess(log_weights) < PLATES.least_effective or not bool(torch.isfinite(ratio).all()):
            break
        before = {name: value.clone() for name, value in guide.tables.state_dict().items()}
        guide.stretch_globals(mean - here, ratio, here)
        found = weigh()
        if not _effective(found) > _effective(weights):
            guide.tables.load_state_dict(before)
            break
        weights, moves = found, moves + 1
    return weights, moves


def _effective(weights: GlobalWeights) -> float:
    """Return the effective number of draws; 0 where weights say nothing."""
    try:
        found = ess(psis(weights.log_p - weights.log_q).log_weights)
    except WeightError:
        return 0.0
    return found if math.isfinite(found) else 0.0
