"""The parameters of a model, taken from the param sites of a run rather than by name."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints


def param_leaves(trace: Trace) -> dict[str, Tensor]:
    """Return the unconstrained leaf of each param site of a run, in the order of the sites.

    Where ``pyro.param`` keeps a leaf in the param store, it is the store's; under
    ``pyro.settings.set(module_local_params=True)`` a module keeps its own, and the store has
    nothing of that name. A tensor that appears under two names is returned under the first.

    Example:
        >>> import pyro, torch
        >>> from pyro.poutine import trace
        >>> def model():
        ...     return pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        >>> with pyro.get_param_store().scope():
        ...     leaves = param_leaves(trace(model).get_trace())
        >>> {name: round(leaf.item(), 2) for name, leaf in leaves.items()}
        {'scale': 0.69}
    """
    store = pyro.get_param_store()
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, site in trace.nodes.items():
        if site["type"] != "param":
            continue
        leaf = store[name].unconstrained() if name in store else _leaf(site)
        if leaf is not None and id(leaf) not in seen:
            seen.add(id(leaf))
            found[name] = leaf
    return found


def constraint_of(trace: Trace, name: str) -> constraints.Constraint:
    """Return the constraint of a param site."""
    store = pyro.get_param_store()
    if name in store:
        return store._constraints[name]
    return trace.nodes[name]["kwargs"].get("constraint") or constraints.real


def _leaf(site: dict[str, Any]) -> Tensor | None:
    """The leaf behind a value that is in no store: its own, or itself."""
    value = site["value"]
    reference = getattr(value, "unconstrained", None)
    leaf = value if reference is None else reference()
    return leaf if isinstance(leaf, Tensor) and leaf.is_leaf else None
