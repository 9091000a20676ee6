"""Buffers of the modules that a model runs, such as the running statistics of BatchNorm."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import ModelWarning

#: Wrappers (handlers, partial functions, closures) that are looked into, one in the other.
_DEPTH = 8


def buffers_of(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return buffers of modules in train mode that a model holds, each with a copy, by name.

    The modules are the model itself, and those that its function refers to by its closure or
    its globals. Others (in a list, say) are not found.

    Example:
        >>> from torch import nn
        >>> norm = nn.BatchNorm1d(2)
        >>> sorted(buffers_of(lambda x: norm(x)))[:2]
        ['num_batches_tracked', 'running_mean']
    """
    return {
        name: (buffer, buffer.detach().clone())
        for module in _modules(model, _DEPTH, set())
        for prefix, part in module.named_modules()
        if part.training
        for name, buffer in part.named_buffers(prefix, recurse=False)
    }


def check_buffers(before: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Tell of a model that changes its buffers when it runs.

    Warns:
        ModelWarning: Names the buffer and the cure.
    """
    moved = [name for name, (now, old) in before.items() if not torch.equal(now, old)]
    if not moved:
        return
    warn(
        f"A run of the model changes the buffer {moved[0]!r} of one of its modules, which is in "
        "train mode, as BatchNorm does. Every datum is then normalized by the others, predictions "
        "at new data by the new data, and each evaluation moves the statistics. Set them once, and "
        "call eval() on the module before the fit; or take a layer without statistics (LayerNorm).",
        ModelWarning,
    )


def _modules(model: Any, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    if depth == 0 or id(model) in seen:
        return
    seen.add(id(model))
    if isinstance(model, nn.Module):
        yield model
    elif isinstance(model, functools.partial):
        for part in (model.func, *model.args):
            yield from _modules(part, depth - 1, seen)
    elif isinstance(model, BatchModel):
        yield from _modules(model.model, depth - 1, seen)
    elif isinstance(model, MethodType):
        yield from _modules(model.__self__, depth - 1, seen)
        yield from _modules(model.__func__, depth - 1, seen)
    elif isinstance(model, FunctionType):
        yield from _modules(getattr(model, "__wrapped__", None), depth - 1, seen)
        for cell in model.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            yield from _modules(content, depth - 1, seen)
        for name in model.__code__.co_names:
            value = model.__globals__.get(name)
            if isinstance(value, nn.Module):
                yield from _modules(value, depth - 1, seen)
