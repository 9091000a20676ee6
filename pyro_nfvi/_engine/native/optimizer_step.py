"""The optimisers of the compiled loop, and their state in torch's form and in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from pyro_nfvi._engine.program import OptimizerSpec, Unsupported

#: Numbers by which the C++ knows them.
KINDS = {"Adam": 0, "AdamW": 1, "RMSprop": 2, "SGD": 3, "Adagrad": 4, "ClippedAdam": 5}


def kind_of(spec: OptimizerSpec) -> str:
    """Return the optimiser's kind.

    Raises:
        Unsupported: The compiled loop does not know it, or not with these options.
    """
    if type(spec.optimizer) is ClippedAdam:
        return "ClippedAdam"
    if spec.kind not in KINDS:
        name = type(spec.optimizer).__name__
        raise Unsupported(f"the optimiser {name}; native code knows {', '.join(KINDS)}")
    kinds = set()
    for options in spec.options:
        for name in ("capturable", "differentiable"):
            if options.get(name):
                raise Unsupported(f"the option {name} of {spec.kind}")
        for name, value in options.items():
            if isinstance(value, Tensor):
                raise Unsupported(f"the option {name} of {spec.kind}, given as a tensor")
        kind = spec.kind
        if kind in ("Adam", "AdamW"):
            kind = "AdamW" if options.get("decoupled_weight_decay", kind == "AdamW") else "Adam"
        kinds.add(kind)
    if len(kinds) != 1:
        raise Unsupported("an optimiser whose groups differ in decoupled_weight_decay")
    return kinds.pop()


def group_options(kind: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Return a group's options under the names of the C++ struct."""
    betas = options.get("betas", (0.0, 0.0))
    second = {"RMSprop": options.get("alpha", 0.0)}.get(kind, betas[1])
    return {
        "beta1": options.get("lr_decay", 0.0) if kind == "Adagrad" else betas[0],
        "beta2": second,
        "eps": options.get("eps", 0.0),
        "decay": options.get("weight_decay", 0.0),
        # Of ClippedAdam they hold the largest gradient and the decay of the rate.
        "momentum": options.get("clip_norm", options.get("momentum", 0.0)),
        "dampening": options.get("lrd", options.get("dampening", 0.0)),
        "nesterov": int(bool(options.get("nesterov", False))),
        "centered": int(bool(options.get("centered_variance", options.get("centered", False)))),
        "maximize": int(bool(options.get("maximize", False))),
        "amsgrad": int(bool(options.get("amsgrad", False))),
    }


def state_names(kind: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return torch's names of the three state vectors; an empty one is not in use."""
    if kind in ("Adam", "AdamW"):
        return "exp_avg", "exp_avg_sq", "max_exp_avg_sq" if options.get("amsgrad") else ""
    if kind == "ClippedAdam":
        return "exp_avg", "exp_avg_sq", ""
    if kind == "RMSprop":
        mean = "grad_avg" if options.get("centered") else ""
        return "square_avg", mean, "momentum_buffer" if options.get("momentum") else ""
    if kind == "Adagrad":
        return "sum", "", ""
    return "momentum_buffer" if options.get("momentum") else "", "", ""


def read_state(
    optimizer: torch.optim.Optimizer,
    param: Tensor,
    names: Sequence[str],
    targets: Sequence[Tensor],
) -> float | None:
    """Copy a parameter's state into flat vectors; return the steps it has taken, if known."""
    state = optimizer.state.get(param, {})
    for name, target in zip(names, targets):
        if name:
            value = state.get(name)
            target.copy_(value.reshape(-1)) if value is not None else target.zero_()
    if "step" in state:
        return float(state["step"])
    has_any = any(state.get(name) is not None for name in names if name)
    return (1.0 if has_any else 0.0) if not state or "momentum_buffer" in state else None


def write_state(
    optimizer: torch.optim.Optimizer,
    param: Tensor,
    kind: str,
    names: Sequence[str],
    sources: Sequence[Tensor],
    steps: float,
) -> None:
    """Copy a parameter's state back, making it if torch has none yet."""
    if steps == 0 and not optimizer.state.get(param):
        return
    state = optimizer.state[param]
    if kind == "ClippedAdam":
        state["step"] = int(steps)
    elif kind != "SGD":
        known = state.get("step")
        if isinstance(known, Tensor):
            known.fill_(steps)
        else:
            double = torch.get_default_dtype() == torch.float64
            dtype = torch.float64 if double else torch.float32
            state["step"] = torch.tensor(float(steps), dtype=dtype)
    for name, source in zip(names, sources):
        if not name:
            continue
        value = state.get(name)
        if value is None:
            state[name] = source.reshape(param.shape).clone()
        else:
            value.copy_(source.reshape(param.shape))
