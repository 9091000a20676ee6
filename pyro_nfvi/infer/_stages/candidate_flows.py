"""The flows that model selection tries."""

from __future__ import annotations

from pyro_nfvi.infer._recipe import FLOW_GROWTH


def candidate_flows(dim: int) -> tuple[str, ...]:
    """Formulas of the flows to try, each the one before with layers in front of it.

    Example:
        >>> candidate_flows(10)
        ('iaf*2', 'nsf*2|iaf*2')
    """
    if dim == 1:
        return ("nsf-ar", "nsf-ar|nsf-ar")
    if dim <= FLOW_GROWTH.iaf_dim:
        return ("iaf*2", "nsf*2|iaf*2")
    return ("realnvp*6", "realnvp*6|realnvp*6")
