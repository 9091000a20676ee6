"""State of Pyro that belongs to the process, kept at each turn for a child of a fork."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pyro
from pyro.nn.module import _Context
from pyro.poutine.runtime import _PYRO_STACK

from pyro_nfvi._model_lock import restore_in_child, takes_turn, turn

__all__ = ["takes_turn", "turn"]


def _pyro_state() -> Callable[[], None]:
    """Keep handlers, param store and settings as they are before a model is run."""
    stack, settings = list(_PYRO_STACK), pyro.settings.get()
    # A scope of the store gives it other dictionaries and leaves these alone.
    store = pyro.get_param_store()
    held = store._params, store._param_to_name, store._constraints

    def bring_back() -> None:
        _leave_modules()
        _PYRO_STACK[:] = stack
        store._params, store._param_to_name, store._constraints = held
        pyro.settings.set(**settings)

    return bring_back


def _leave_modules() -> None:
    """End all calls of Pyro modules: values of a call that never ends would be reused for ever."""
    for context in gc.get_objects():
        if type(context) is _Context and context.active:
            context.active = 0
            context.cache.clear()
            context.__dict__.pop("_param_ctx", None)


restore_in_child(_pyro_state)
