"""The source of a number that is not finite: a site of the model, or a layer of the flow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._pyro_model.gradient_fault import find_gradient_fault
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.flows._base import Layer
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide


def _name_of(layer: Layer) -> str:
    """Return the place and the type of a layer: ``"0: Planar"``."""
    places = [f"{part}: " for part in layer.path.split(".") if part.isdigit()]
    return f"{''.join(places)}{type(layer.flow).__name__}"


def locate_nonfinite(
    guide: AutoFlow | PyroGuide, log_joint: LogJoint, eps: Tensor, subsample: Mapping[str, Tensor]
) -> str:
    """Name, as a clause, the first place at which the pass of ``eps (S, D)`` is not finite."""
    bad = [
        name
        for name, param in guide.named_parameters()
        if not bool(torch.isfinite(param.detach()).all())
    ]
    if bad:
        return f"the guide's parameter {bad[0]!r} is not finite"
    with torch.no_grad():
        density, x = guide.density_at(subsample), eps
        if not isinstance(density, FlowDensity):
            x, log_q = density.push(eps)
            if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(log_q).all())):
                return "the guide gives draws that are not finite"
        else:
            for layer in density.flow.layers():
                x, ladj = layer.map(x)
                if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(ladj).all())):
                    return f"the flow's layer {_name_of(layer)} gives values that are not finite"
        log_p = log_joint(x, subsample)
        rows = (~torch.isfinite(log_p)).nonzero().reshape(-1)
    if len(rows):
        where = _sites(log_joint, x[rows[0]], subsample)
        return f"the model's {where} at a draw from the guide"
    return _gradient(guide, log_joint, eps, x, subsample)


def _sites(log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor]) -> str:
    found = log_joint.locate_nonfinite(z, subsample)
    if not found:
        return "log joint is not finite"
    names = ", ".join(repr(name) for name in found[:3])
    if len(found) == 1:
        names += log_joint.nonfinite_row(z, subsample, found[0])
    return f"sites {names} are not finite" if len(found) > 1 else f"site {names} is not finite"


def _gradient(
    guide: AutoFlow | PyroGuide,
    log_joint: LogJoint,
    eps: Tensor,
    x: Tensor,
    subsample: Mapping[str, Tensor],
) -> str:
    """Values are finite, so a gradient is not: find the latent coordinate, or the parameter."""
    gradient = score(lambda rows: log_joint(rows, subsample), x)[1]
    rows = (~torch.isfinite(gradient)).any(-1).nonzero().reshape(-1)
    for row in rows[:1]:
        fault = find_gradient_fault(log_joint, x[row], subsample)
        if fault is not None:
            return str(fault)
    return _in_the_guide(guide, log_joint, eps, subsample)


def _in_the_guide(
    guide: AutoFlow | PyroGuide, log_joint: LogJoint, eps: Tensor, subsample: Mapping[str, Tensor]
) -> str:
    """Neither values nor the model's gradient: the way back through the flow, or a parameter."""
    named = [(name, param) for name, param in guide.named_parameters() if param.requires_grad]
    with torch.enable_grad():
        x, log_q = guide.density_at(subsample).push(eps)
        bound = (log_joint(x, subsample) - log_q).mean()
        grads = torch.autograd.grad(bound, [param for _, param in named], allow_unused=True)
    largest, where = 0.0, ""
    for (name, _), grad in zip(named, grads):
        if grad is None or not grad.numel():
            continue
        size = float(grad.abs().max())
        if not math.isfinite(size):
            return f"the gradient of the guide's parameter {name!r} is not finite"
        if size > largest:
            largest, where = size, name
    if largest > torch.finfo(eps.dtype).max ** 0.4:  # the squares of some such are no number
        return (
            f"the gradient of the guide's parameter {where!r} reaches {largest:.0e}, beyond what "
            "its norm can hold"
        )
    return "the gradient of a parameter of the model is not finite"
