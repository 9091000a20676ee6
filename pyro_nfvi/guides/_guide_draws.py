"""Drawing in chunks, and deterministic sites at given draws of the latents."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine

from pyro_nfvi._pyro_model.model_run import is_deterministic
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._recipe import GUIDES


def chunk_rows(dim: int) -> int:
    """Rows of size ``dim`` that go through the flow at once when drawing or summarising."""
    return max(1, min(GUIDES.rows, GUIDES.numbers // dim))


def draws_shape(num_samples: int | Sequence[int]) -> tuple[int, ...]:
    """Read a number of draws, or a shape of them; numbers may be of any integer type."""
    sizes = num_samples if isinstance(num_samples, Sequence) else (num_samples,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:
        shape = (-1,)
    if any(size < 0 for size in shape):
        raise OptionError(
            f"num_samples needs to be a whole number, 0 or more, or a shape; got {num_samples!r}."
        )
    return shape


def deterministic_sites(
    model: Callable[..., Any],
    draws: Mapping[str, torch.Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> TensorDict:
    """Run the model once per draw and stack its deterministic and reparameterised sites."""
    count = len(next(iter(draws.values())))
    found: dict[str, list[torch.Tensor]] = {}
    for index in range(count):
        point = {name: value[index] for name, value in draws.items()}
        with poutine.block():
            trace = poutine.trace(poutine.condition(model, data=point)).get_trace(*args, **kwargs)
        for name, site in trace.nodes.items():
            if is_deterministic(site):
                found.setdefault(name, []).append(site["value"])
    return {name: torch.stack(values) for name, values in found.items()}
