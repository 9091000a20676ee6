"""``ModelParams``: the parameters of a model as a fit has trained them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.guides._param_guard import ParamGuard


@dataclass(frozen=True, eq=False)
class ModelParams:
    """Trained values of a model's parameters, and the leaves that the model reads.

    A leaf may be a module's own: the user, or another fit, may change it later. The values are the
    fit's own copies; :meth:`scope` puts them in force for a while.

    Attributes:
        values: Trained values of the unconstrained leaves, by param site.
        leaves: The leaves.
        limits: Constraint of each.
        stored: Names that the param store has to hold; a module keeps the others by itself.
    """

    values: TensorDict = field(default_factory=dict)
    leaves: TensorDict = field(default_factory=dict)
    limits: Mapping[str, constraints.Constraint] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, leaves: Mapping[str, Tensor], limits: Mapping[str, constraints.Constraint]
    ) -> ModelParams:
        """Take the present values of leaves; call it in the store scope of the fit."""
        values = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        stored = frozenset(name for name in leaves if name in pyro.get_param_store())
        return cls(values, dict(leaves), dict(limits), stored)

    def __bool__(self) -> bool:
        return bool(self.values)

    def constrained(self) -> TensorDict:
        """Return the values in the space of their constraints."""
        with torch.no_grad():
            return {
                name: transform_to(self.limits[name])(value).clone()
                for name, value in sorted(self.values.items())
            }

    def with_values(self, constrained: Mapping[str, Tensor]) -> ModelParams:
        """Return the same parameters with other values, given in the space of the constraints."""
        values = {
            name: transform_to(self.limits[name]).inv(value).to(self.leaves[name]).detach().clone()
            for name, value in constrained.items()
        }
        return ModelParams(values, self.leaves, self.limits, self.stored)

    def put(self) -> None:
        """Write the values into the leaves."""
        _write(self.leaves, self.values)

    def guard(self) -> ParamGuard | None:
        """Return what keeps a guide from being run beside other values; None without parameters."""
        own = {
            name: leaf
            for name, leaf in self.leaves.items()
            if name not in self.stored or isinstance(leaf, nn.Parameter)
        }
        return ParamGuard(self.values, own) if self.values else None

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Let the model see these values, and the user's store nothing of it."""
        state = {
            "params": {name: self.leaves[name] for name in self.stored},
            "constraints": {name: self.limits[name] for name in self.stored},
        }
        # A module's leaf may have been trained on by somebody else: it is lent, and given back.
        others = {
            name: leaf.detach().clone()
            for name, leaf in self.leaves.items()
            if not torch.equal(leaf, self.values[name])
        }
        _write(self.leaves, {name: self.values[name] for name in others})
        try:
            with pyro.get_param_store().scope(state):
                yield
        finally:
            _write(self.leaves, others)


def _write(leaves: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            leaves[name].copy_(value)
