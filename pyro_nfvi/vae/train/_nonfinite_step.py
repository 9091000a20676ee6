"""The source of a VAE's numbers that are not finite, in words."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.vae._bound_flow import BoundFlow
from pyro_nfvi.vae._model import FlowVAE


@torch.no_grad()
def locate_nonfinite(vae: FlowVAE, x: Tensor, y: Tensor | None, eps: Tensor) -> str:
    """Name the first place that is not finite: a parameter, a part, a layer, or a gradient.

    Args:
        vae: The VAE, with the gradients of the step in question.
        x: The images of the step.
        y: Their labels.
        eps: The noise of the step ``(S, B, D)``.
    """
    for name, parameter in vae.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name} is not finite"
    posterior = vae.encode(x, y)
    for name, value in (
        ("mean", posterior.loc), ("scale", posterior.scale), ("context", posterior.context)
    ):  # fmt: skip
        if value is not None and not _finite(value):
            return f"the encoder's {name} is not finite"
    z = posterior.loc + posterior.scale * eps
    for index, layer in enumerate([] if vae.flow is None else vae.flow.layers()):
        z, ladj = BoundFlow(layer.map, posterior.context).forward(z)
        if not (_finite(z) and _finite(ladj)):
            return (
                f"the flow's layer {index} ({type(layer.flow).__name__}) gives numbers not finite"
            )
    c = vae.condition(y, x)
    if not _finite(vae.prior_log_prob(z, c)):
        return "the prior's log density is not finite"
    params = vae.decode(z, c)
    if not _finite(params):
        return "the decoder's output is not finite"
    if not _finite(vae.likelihood.log_prob(params, x)):
        return f"the {vae.likelihood.name} log-likelihood is not finite"
    for name, parameter in vae.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name} is not finite"
    norms = {
        name: float(parameter.grad.double().norm())
        for name, parameter in vae.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        name = max(norms, key=lambda key: norms[key])
        return f"the gradient's norm overflows; that of {name} is largest, {norms[name]:.2g}"
    return "the sum over the batch is not finite"


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
