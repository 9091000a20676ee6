"""The optimiser of a fit, from all that a user may pass as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi.errors import OptionError

#: None, a rate, a callable of the parameters, or one of Pyro's optimisers.
OptimSpec: TypeAlias = "float | Callable[[list[Tensor]], torch.optim.Optimizer] | PyroOptim | None"


def check_optim(optim: Any) -> None:
    """Refuse what cannot be made into an optimiser, before any work is done.

    Raises:
        OptionError: Tells what can.
    """
    rate = isinstance(optim, (int, float)) and not isinstance(optim, bool)
    if optim is None or (rate and optim > 0):
        return
    if isinstance(optim, torch.optim.Optimizer):
        raise OptionError(
            "optim is to be made for the guide's parameters, which do not exist yet: pass a "
            "callable, such as lambda params: torch.optim.Adam(params, lr=0.01)."
        )
    if isinstance(optim, PyroOptim):
        if isinstance(optim.pt_optim_args, dict):
            return
        raise OptionError("A Pyro optimiser with a dict of options works here, not a callable.")
    if callable(optim):
        return
    raise OptionError(
        "optim is None (Adam), a positive learning rate, a callable from parameters to a torch "
        f"optimiser, or one of pyro.optim; got {optim!r}."
    )


def make_optimizer(
    optim: OptimSpec,
    inner: Sequence[Tensor],
    outer: Sequence[Tensor],
    rate: float,
    *,
    cold: bool = True,
    models: Sequence[Tensor] = (),
    unit: float = 1.0,
) -> torch.optim.Optimizer:
    """Build the optimiser.

    Args:
        optim: What the user passed; a callable and Pyro's optimisers get all parameters at one
            rate, their own.
        inner: Parameters of the flow.
        outer: Location and scale outside the flow.
        rate: Used where the user gave none.
        cold: The outer ones start far from the posterior, with no Gaussian fitted before;
            Adam's own rate for them is then five times as high.

        models: Parameters of the model.
        unit: How far these move the evidence by half a nat: where that is less than one, Adam's
            own rate for them is in this unit, or a step would throw them off.

    Raises:
        OptionError: The callable returned something else.
    """
    leaves = [*inner, *models, *outer]
    if optim is None or isinstance(optim, (int, float)):
        rate = rate if optim is None else float(optim)
        groups = [
            {"params": [*inner, *(models if unit >= 1 else ())], "lr": rate},
            {"params": list(outer), "lr": (TRAINING.outer_rate if cold else 1.0) * rate},
            {"params": list(models) if unit < 1 else [], "lr": unit * rate},
        ]
        fused = all(leaf.is_floating_point() and leaf.device.type != "mps" for leaf in leaves)
        return Adam([group for group in groups if group["params"]], fused=fused)
    if isinstance(optim, PyroOptim):
        return optim.pt_optim_constructor(leaves, **optim.pt_optim_args)
    made = optim(leaves)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(
            f"optim returned {type(made).__name__}; it is to return a torch optimiser."
        )
    return made
