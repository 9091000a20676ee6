"""Deterministic sites at given draws of the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine

from pyro_nfvi._typing import TensorDict

__all__ = ["deterministic_sites"]


def deterministic_sites(
    model: Callable[..., Any],
    draws: Mapping[str, torch.Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> TensorDict:
    """Run the model once per draw and stack its ``pyro.deterministic`` sites."""
    count = len(next(iter(draws.values())))
    found: dict[str, list[torch.Tensor]] = {}
    for index in range(count):
        point = {name: value[index] for name, value in draws.items()}
        with poutine.block():
            trace = poutine.trace(poutine.condition(model, data=point)).get_trace(*args, **kwargs)
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["infer"].get("_deterministic"):
                found.setdefault(name, []).append(site["value"])
    return {name: torch.stack(values) for name, values in found.items()}
