"""Keeping a guide's tensors and Pyro's param store one and the same.

Pyro's own flow guides let a second guide of the same name sample from tensors that no optimiser
steps. Here the store's values are taken over, as ``AutoDiagonalNormal`` does, or an error is
raised; a guide is never silently untrained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pyro
import torch
from pyro.params.param_store import (
    module_from_param_with_module_name,
    param_with_module_name,
)
from torch import Tensor, nn

from pyro_nfvi.errors import ParamStoreError

__all__ = ["check_store", "stored_names", "sync_module"]

_CURE = (
    "Another guide of this name was fitted in this process, or loaded. Fit in a scope of its own, "
    "`with pyro.get_param_store().scope(): ...`, or call pyro.clear_param_store() if the stored "
    "parameters are not needed."
)


def stored_names(prefix: str, module: nn.Module | None) -> Iterator[tuple[str, str, Tensor]]:
    """Yield ``(name in the store, name in the module, parameter)`` of a module under a prefix."""
    if module is not None:
        for name, parameter in module.named_parameters():
            yield param_with_module_name(prefix, name), name, parameter


def check_store(expected: Mapping[str, torch.Size], owned: Iterable[str]) -> None:
    """Compare the store with the parameters that a guide is about to use.

    Args:
        expected: Shape of each (unconstrained) parameter by its name in the store.
        owned: The parameters and modules that belong to the guide, by full name.

    Raises:
        ParamStoreError: The store has some of the names, but other shapes or other keys.
    """
    store = pyro.get_param_store()
    mine = set(owned)
    present = [name for name in store.keys() if module_from_param_with_module_name(name) in mine]
    if not present:
        return
    for name in present:
        if name not in expected:
            raise ParamStoreError(
                f"Pyro's param store holds {name!r}, which this guide does not have. {_CURE}"
            )
        found = store[name].unconstrained().shape
        if found != expected[name]:
            raise ParamStoreError(
                f"Pyro's param store holds {name!r} of shape {tuple(found)}; this guide needs "
                f"{tuple(expected[name])}. {_CURE}"
            )
    missing = [name for name in expected if name not in store]
    if missing:
        raise ParamStoreError(
            f"Pyro's param store holds parameters of this guide's name, but not {missing[0]!r}. "
            f"{_CURE}"
        )


def sync_module(prefix: str, module: nn.Module | None) -> None:
    """Take over the store's values of a module's parameters and register those it lacks.

    Runs at every call of the guide, as Pyro does for its own parameters, so that clearing or
    loading the store between two calls is seen.
    """
    store = pyro.get_param_store()
    for full, name, parameter in list(stored_names(prefix, module)):
        if full in store:
            stored = store[full].unconstrained()
            if stored is not parameter:
                if stored.shape != parameter.shape:
                    raise ParamStoreError(
                        f"Pyro's param store holds {full!r} of shape {tuple(stored.shape)}; this "
                        f"guide needs {tuple(parameter.shape)}. {_CURE}"
                    )
                if not isinstance(stored, nn.Parameter):
                    # A loaded store holds plain leaves; a module and an optimiser have to share
                    # one tensor.
                    stored = nn.Parameter(stored.detach())
                    store[full] = stored
                owner, _, leaf = name.rpartition(".")
                assert module is not None
                module.get_submodule(owner)._parameters[leaf] = stored
                parameter = stored
        if parameter.requires_grad:
            pyro.param(full, parameter)
