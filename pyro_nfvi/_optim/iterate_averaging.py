"""Iterate averaging: the mean of the states at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_nfvi._optim.snapshot import Snapshot


def averaged(mean: Snapshot | None, params: Sequence[Tensor]) -> Snapshot:
    r"""Take one more state into an average, whose ``step`` counts them.

    State n enters with the share :math:`4 / (n + 3)`, so that later ones count more.

    Source: Shamir and Zhang 2013, arXiv:1212.1824, section 4 (polynomial-decay averaging).
    """
    count = 1 if mean is None else mean.step + 1
    power = 3  # of the paper's weights: 0 would be equal ones
    now = tuple(param.detach().clone() for param in params)
    if mean is None:
        return Snapshot(1, now, {})
    share = (power + 1) / (count + power)
    values = tuple(old + share * (new - old) for old, new in zip(mean.values, now, strict=True))
    return Snapshot(count, values, {})
