"""Operations of PyTorch by name, of which a release may lack some: the one place to look them up.

ATen is not a promise: operations come and go between releases of PyTorch. The package
names them through :data:`aten` and :data:`prims`, so that a name that is gone costs its rule and
not the import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Missing:
    """Stands for an operation, or an overload of one, that this PyTorch lacks.

    It equals no operation of a graph, so that looking for it finds nothing.
    """

    name: str

    def overloads(self) -> list[str]:
        """None, as the operation is not there."""
        return []

    def __getattr__(self, overload: str) -> Missing:
        if overload.startswith("__"):  # Python's own protocols
            raise AttributeError(overload)
        return Missing(f"{self.name}.{overload}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse the call.

        Raises:
            NotImplementedError: Always; the message names the operation.
        """
        raise NotImplementedError(f"PyTorch {torch.__version__} has no operation {self.name}")


class _Operation:
    """An operation whose overloads may be missing; each is looked up once."""

    def __init__(self, name: str, packet: Any) -> None:
        self._name, self._packet = name, packet

    def overloads(self) -> list[str]:
        """Names of those that this PyTorch has."""
        return list(self._packet.overloads())

    def __getattr__(self, overload: str) -> Any:
        if overload.startswith("__"):
            raise AttributeError(overload)
        found = getattr(self._packet, overload, None)
        found = Missing(f"{self._name}.{overload}") if found is None else found
        self.__dict__[overload] = found
        return found


class Namespace:
    """Operations as attributes: ``aten.mm.default``, or a :class:`Missing` of that name.

    Args:
        name: What it is called in messages.
        operations: What has the operations, such as ``torch.ops.aten``.

    Example:
        >>> from types import SimpleNamespace
        >>> Namespace("aten", SimpleNamespace()).cholesky.default
        Missing(name='aten.cholesky.default')
    """

    def __init__(self, name: str, operations: Any) -> None:
        self._name, self._operations = name, operations

    def __getattr__(self, operation: str) -> Any:
        # ATen has ``__and__`` and the like; Python asks for none of these.
        if operation.startswith("__") and operation not in ("__and__", "__or__", "__xor__"):
            raise AttributeError(operation)
        packet = getattr(self._operations, operation, None)
        name = f"{self._name}.{operation}"
        found: Any = Missing(name) if packet is None else _Operation(name, packet)
        self.__dict__[operation] = found
        return found


aten = Namespace("aten", torch.ops.aten)
prims = Namespace("prims", torch.ops.prims)
