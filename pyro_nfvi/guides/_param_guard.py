"""Keeps a fitted guide from being used beside parameters of its model that were not trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_nfvi.errors import ParamStoreError


class ParamGuard:
    """The trained parameters of a guide's model, and whether they are in force.

    Draws of the guide are right under these parameters alone. They belong to the fit: outside of
    its scope ``pyro.param`` would begin anew from its initial values, without a word.

    Args:
        values: Trained values of the unconstrained leaves, by param site.
        leaves: Leaves that modules of the user's hold themselves; the others are looked up in the
            param store.
    """

    def __init__(self, values: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> None:
        self.values, self.leaves = dict(values), dict(leaves)
        self._open = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values, "leaves": {}, "_open": 0}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Mark the time in which the parameters are in force."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def check(self, guide: str) -> None:
        """Refuse a run of the guide beside other parameters.

        Where gradients are recorded the parameters may train on, and need only be there.

        Raises:
            ParamStoreError: A parameter is missing, or has another value than after training.
        """
        if self._open:
            return
        store = pyro.get_param_store()
        for name, value in self.values.items():
            leaf = store[name].unconstrained() if name in store else self.leaves.get(name)
            if leaf is not None and torch.is_grad_enabled():
                continue
            if leaf is None or leaf.shape != value.shape or not torch.equal(leaf.to(value), value):
                state = "is not in the param store" if leaf is None else "has another value there"
                raise ParamStoreError(
                    f"This {guide} belongs to a fit whose model has the parameter {name!r}, and it "
                    f"{state}: the model would run with a value that was not trained. Use "
                    "fit.predict(*args, **kwargs); or `with fit.model_scope(): ...` around what "
                    "runs guide and model; or put the values of fit.params into the param store."
                )
