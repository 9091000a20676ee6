"""A fit's own corner of the process: its random state and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor, nn

from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.initial_point_search import any_trace
from pyro_nfvi._pyro_model.param_sites import param_leaves
from pyro_nfvi._random import seeded


@contextmanager
def own_random_state(seed: int, *labels: int | str) -> Iterator[None]:
    """Seed torch for the time of a fit; the caller's state comes back afterwards.

    Fits in several threads take turns (:mod:`pyro_nfvi._model_lock`).
    """
    with seeded(seed, *labels):
        yield


def _copy(param: Tensor) -> Tensor:
    # Parameters of the user's own modules are trained in place, as everywhere in torch.
    if isinstance(param, nn.Parameter):
        return param
    return param.detach().clone().requires_grad_(param.requires_grad)


@contextmanager
def own_params(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[frozenset[str]]:
    """Give a fit a param store of its own; yield the names that the model uses.

    The model's parameters start from copies of the values in the user's store. Those of guides
    do not come along, so that an earlier fit has no say in this one.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    copies = {
        "params": {name: _copy(param) for name, param in state["params"].items()},
        "constraints": dict(state["constraints"]),
    }
    module = model.model if isinstance(model, BatchModel) else model
    held = list(module.parameters()) if isinstance(module, nn.Module) else []
    frozen = [param for param in held if not param.requires_grad]
    with store.scope(copies):
        used = frozenset(param_leaves(any_trace(model, args, kwargs)))
        for param in frozen:  # Pyro's store makes every tensor trainable that it takes
            param.requires_grad_(False)
        own = only(store.get_state(), used)
    with store.scope(own):
        yield used


def only(state: Mapping[str, dict[str, Any]], names: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Cut a param store's state down to some names; a module may keep a parameter to itself."""
    return {
        key: {name: state[key][name] for name in names if name in state[key]}
        for key in ("params", "constraints")
    }
