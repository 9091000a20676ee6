"""The site, the latent and the operation at which the gradient of a log joint is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyro_nfvi._chain_rule import Singularity, find_singularity, score
from pyro_nfvi._pyro_model.log_joint import LogJoint


@dataclass(frozen=True)
class GradientFault:
    """A gradient that is not finite at a point where the density is.

    Attributes:
        latent: The latent number, such as ``"ec50"`` or ``"theta[3]"``, or a parameter's name.
        site: The site whose log density has that gradient; None where none has by itself.
        cause: The operation.
        limit: Whether the gradient has a limit there, which fits of this package take.
    """

    latent: str
    site: str | None
    cause: Singularity | None
    limit: bool

    def __str__(self) -> str:
        whose = "the log joint" if self.site is None else f"site {self.site!r}"
        cause = "" if self.cause is None else f": {self.cause}"
        return f"the gradient of {whose} with respect to {self.latent!r} is not finite{cause}"


def find_gradient_fault(
    log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor] | None = None
) -> GradientFault | None:
    """Look for a gradient that is not finite at a point ``z (D,)`` of finite density.

    Args:
        log_joint: The log joint.
        z: The unconstrained point.
        subsample: Indices of the plates that subsample.

    Returns:
        The fault, by the plain chain rule; None where density and gradient are finite, or where
        the density is not.

    Cost:
        A few runs of the model, and backward passes of each of its sites.
    """
    subsample = log_joint.draw_subsample() if subsample is None else subsample
    log_joint = log_joint.eager  # the graph of its operations is looked at
    named = log_joint.named_parameters()
    with torch.enable_grad():
        point = z.detach()[None].requires_grad_()
        leaves = [point, *named.values()]
        log_p = log_joint(point, subsample)
        if not (bool(torch.isfinite(log_p).all()) and log_p.requires_grad):
            return None
        grads = torch.autograd.grad(log_p.sum(), leaves, allow_unused=True)
    bad = [g is not None and not bool(torch.isfinite(g).all()) for g in grads]
    if not any(bad):
        return None
    _, limit, limits = score(lambda rows: log_joint(rows, subsample), point, list(named.values()))
    # Those without a limit come first: they are the ones that cannot be mended here.
    without = [not bool(torch.isfinite(g).all()) for g in (limit, *limits)]
    place = (without if any(without) else bad).index(True)
    if place == 0:
        column = limit if any(without) else grads[0]
        assert column is not None
        latent = log_joint.latent.at(int((~torch.isfinite(column[0])).nonzero()[0]))
    else:
        latent = list(named)[place - 1]
    site, cause = _site(log_joint, z, subsample, list(named.values()), place)
    return GradientFault(latent, site, cause, not any(without))


def _site(
    log_joint: LogJoint,
    z: Tensor,
    subsample: Mapping[str, Tensor],
    params: list[Tensor],
    place: int,
) -> tuple[str | None, Singularity | None]:
    """Find the first site whose own log density has such a gradient, and the operation."""
    with torch.enable_grad(), pyro.validation_enabled(False):
        point = z.detach().requires_grad_()
        leaf = [point, *params][place]
        values, _ = log_joint.latent.constrain(point)
        trace = log_joint._run.trace(values, subsample)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["log_prob"].requires_grad:
                cause = find_singularity(site["log_prob"].sum(), [leaf])
                if cause is not None:
                    return name, cause
        whole = log_joint(point[None], subsample).sum()
        return None, find_singularity(whole, [leaf]) if whole.requires_grad else None
