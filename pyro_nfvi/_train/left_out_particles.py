"""Particles that the last steps of a training left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._pyro_model.gradient_fault import find_gradient_fault
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.diagnostics._finding import Finding, Level
from pyro_nfvi.guides._auto_flow import AutoFlow


@dataclass(frozen=True)
class LeftOut(Finding):
    """Particles that the last steps left out: their density or its gradient was not finite.

    Attributes:
        share: Share of the particles of the last steps.
        site: The site at fault; empty where none is by itself.
        why: Site and cause, as a clause.
    """

    share: float
    site: str = ""
    why: str = ""

    #: Shares from which on the fit may be wrong, and from which on it is stuck.
    MANY: ClassVar[float] = 0.01
    MOST: ClassVar[float] = 0.1

    @property
    def level(self) -> Level:
        if self.share > self.MOST:
            return Level.FAULT
        return Level.DOUBT if self.share > self.MANY else Level.REMARK

    def sentence(self) -> str:
        if self.level is Level.REMARK:
            return ""
        return (
            f"{100 * self.share:.2g} % of the particles of the last steps were left out, so that "
            f"training did not see where they lie: {self.why}"
        )


def left_out(
    guide: AutoFlow,
    log_joint: LogJoint,
    counts: Sequence[int],
    eps: Tensor,
    streams: Mapping[str, Tensor],
) -> LeftOut | None:
    """Say which share of the particles was left out at the end of a training, and why.

    Args:
        guide: The guide as it is then.
        log_joint: The model's log joint.
        counts: Particles that each of the last steps left out.
        eps: Noise of one step ``(P, D)``, on which the cause is looked for.
        streams: Its other inputs.

    Returns:
        None where none was left out.

    Cost:
        Nothing where none was; else one evaluation of the gradient, and a few of one particle.
    """
    if not any(counts):
        return None
    share = sum(counts) / (len(counts) * len(eps))
    try:
        site, why = _cause(guide, log_joint, eps, streams)
    except Exception:  # the model, or a flow whose parameters are no numbers, may fail in any way
        site, why = "", "the model could not be looked at"
    return LeftOut(share, site, why)


def _cause(
    guide: AutoFlow, log_joint: LogJoint, eps: Tensor, streams: Mapping[str, Tensor]
) -> tuple[str, str]:
    """Find the site, and a clause that names site and cause."""
    with torch.no_grad():
        z, _ = guide.density_at(streams).push(eps)
    log_p, gradient, _ = score(lambda rows: log_joint(rows, streams), z)
    bad = (~torch.isfinite(log_p)).nonzero().reshape(-1)
    if len(bad):
        sites = log_joint.locate_nonfinite(z[bad[0]], streams)
        if sites:
            row = log_joint.nonfinite_row(z[bad[0]], streams, sites[0])
            return sites[0], f"the log density of site {sites[0]!r} is not finite{row}"
        return "", "the log joint is not finite"
    rows = (~torch.isfinite(gradient).all(-1)).nonzero().reshape(-1)
    if len(rows):
        fault = find_gradient_fault(log_joint, z[rows[0]], streams)
        if fault is not None:
            return fault.site or "", str(fault)
    return "", "a density or its gradient was not finite"
