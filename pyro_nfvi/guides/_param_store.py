"""Keeping a guide's tensors and Pyro's param store one and the same.

Pyro's own flow guides let a second guide of the same name sample from tensors that no optimiser
steps. Here a guide takes over the store's values when it is set up, as ``AutoDiagonalNormal``
does, or raises; from then on its tensors are its own, and a guide is never silently untrained.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping

import pyro
import torch
from pyro.params.param_store import (
    module_from_param_with_module_name,
    param_with_module_name,
)
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from pyro_nfvi.errors import ParamStoreError

#: Which guide brought a tensor into the store. It tells another guide's values from loaded ones;
#: weak on both sides, so that it keeps nothing alive.
_OWNERS: WeakIdKeyDictionary = WeakIdKeyDictionary()

_CURE = (
    "Another guide of this name was fitted in this process, or loaded. Fit in a scope of its own, "
    "`with pyro.get_param_store().scope(): ...`, or call pyro.clear_param_store() if the stored "
    "parameters are not needed."
)


def stored_names(prefix: str, module: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name in the store, parameter)`` of a module under a prefix."""
    for full, holder, leaf in _slots(prefix, module):
        parameter = holder._parameters[leaf]
        assert parameter is not None
        yield full, parameter


def _slots(prefix: str, module: nn.Module | None) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield each parameter's name in the store and its place: module and attribute.

    Runs at every call of the guide, so the tree is walked once and nothing is looked up by path.
    """
    seen: set[int] = set()
    for path, holder in () if module is None else module.named_modules():
        for leaf, parameter in holder._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                name = f"{path}.{leaf}" if path else leaf
                yield param_with_module_name(prefix, name), holder, leaf


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


def sync_module(guide: nn.Module, prefix: str, module: nn.Module | None, *, adopt: bool) -> None:
    """:func:`sync_parameter` for every parameter of a module under a prefix."""
    for full, holder, leaf in list(_slots(prefix, module)):
        sync_parameter(guide, full, holder, leaf, adopt=adopt)


def sync_parameter(
    guide: nn.Module, full: str, holder: nn.Module, leaf: str, *, adopt: bool
) -> None:
    """Make one parameter of a guide and the store's entry the same tensor.

    Runs at every call of the guide, as Pyro does for its own parameters, so that clearing or
    loading the store between two calls is seen. Loaded values are taken over. Those of another
    guide of the same name only at set-up (``adopt``): later they are replaced in the store by this
    guide's, so that neither a copy nor a guide fitted before the store was cleared is overwritten.
    """
    parameter = holder._parameters[leaf]
    assert parameter is not None
    stored = _stored(full)
    if stored is not None and stored is not parameter:
        if not adopt and _of_another(guide, stored):
            del pyro.get_param_store()[full]
        else:
            parameter = _take_over(full, stored, parameter)
            holder._parameters[leaf] = parameter
    if adopt or stored is not parameter:
        _OWNERS.setdefault(parameter, weakref.ref(guide))
    if parameter.requires_grad:
        pyro.param(full, parameter)


def release_entry(guide: nn.Module, full: str, parameter: Tensor) -> None:
    """Drop the store's entry if it is another guide's, before a ``PyroParam`` takes it over."""
    stored = _stored(full)
    if stored is not None and stored is not parameter and _of_another(guide, stored):
        del pyro.get_param_store()[full]
    _OWNERS.setdefault(parameter, weakref.ref(guide))


def _stored(full: str) -> Tensor | None:
    store = pyro.get_param_store()
    return store[full].unconstrained() if full in store else None


def _of_another(guide: nn.Module, tensor: Tensor) -> bool:
    owner = _OWNERS.get(tensor)
    return owner is not None and owner() is not guide


def _take_over(full: str, stored: Tensor, parameter: Tensor) -> nn.Parameter:
    if stored.shape != parameter.shape:
        raise ParamStoreError(
            f"Pyro's param store holds {full!r} of shape {tuple(stored.shape)}; this guide needs "
            f"{tuple(parameter.shape)}. {_CURE}"
        )
    if not isinstance(stored, nn.Parameter):
        # A loaded store may hold plain leaves; a module and an optimiser have to share one tensor.
        stored = nn.Parameter(stored.detach())
        pyro.get_param_store()[full] = stored
    return stored
