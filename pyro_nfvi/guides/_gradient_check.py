"""An error that names site and cause where a training loop of the user's gets a NaN gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.gradient_fault import find_gradient_fault
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import ModelError


def watch_gradient(
    latent: Tensor,
    space: LatentSpace,
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Raise, in the backward pass, where the gradient of a drawn vector is not finite.

    Autograd of the user's own loop cannot be made to take limits; parameters would be NaN after
    one step.

    Args:
        latent: Unconstrained vectors ``(*b, D)`` that a guide has drawn.
        space: What their coordinates are.
        model: The model, for the error's words.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Cost:
        One look at the gradient of the vector in each backward pass.
    """
    if not latent.requires_grad or torch.jit.is_tracing():
        return
    points = latent.detach()

    def check(gradient: Tensor) -> None:
        bad = ~torch.isfinite(gradient).all(-1)
        if bool(bad.any()):
            row = points.expand(gradient.shape)[bad][0]
            column = int((~torch.isfinite(gradient[bad][0])).nonzero()[0])
            raise ModelError(_told(row, column, space, model, args, kwargs))

    latent.register_hook(check)


def _told(
    row: Tensor,
    column: int,
    space: LatentSpace,
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """Say where the gradient of the coordinate comes from, as far as the model shows."""
    plain = (
        f"The gradient of the loss with respect to {space.at(column)!r} is not finite. The step "
        "was not taken."
    )
    try:
        assert model is not None
        log_joint = LogJoint(model, args, kwargs, space)
        fault = find_gradient_fault(log_joint, row)
        sites = log_joint.locate_nonfinite(row) if fault is None else []
    except Exception:  # the model may fail in any way; the plain words remain true
        return f"{plain} Look for a scale that can reach 0, or a logarithm of a small number."
    if fault is None and not sites:
        return f"{plain} The model's own gradient is finite at this draw: look at the loss."
    if fault is None:
        names = ", ".join(map(repr, sites[:3]))
        return (
            f"{plain} The log density of {names} is not finite at this draw. Look for a scale "
            "that can reach 0 or a logarithm of a small number there, or start closer "
            "(init_loc_fn=..., init_scale=0.01)."
        )
    words = str(fault)
    told = f"{words[0].upper()}{words[1:]}. The step was not taken. "
    if fault.limit:
        return told + (
            "The gradient has a limit there, since a zero of the chain rule meets an infinity: "
            "NFVI(model).run(...) takes that limit; in a loop of your own, keep the zero out of "
            "the operation, such as x ** h / c ** h for (x / c) ** h, or sqrt(x + 1e-12)."
        )
    return told + "It has no limit there: keep the operation away from that point."
