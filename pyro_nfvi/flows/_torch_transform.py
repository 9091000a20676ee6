"""The one adapter of flows to ``torch.distributions`` and Pyro."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_nfvi._compat import is_transformed
from pyro_nfvi._eval_mode import recorded
from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import Contexts, Image, Points

_Versions = tuple[tuple[int, int], ...]
#: x, y, ladj, versions of what they depend on, whether they carry a graph.
_Memo = tuple[Tensor, Tensor, Tensor, _Versions, bool]


class Bijection(nn.Module, ABC):
    """A map and its inverse, each with its log-determinant."""

    @abstractmethod
    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        """Map ``x`` to ``(y, ladj)``, with ``ladj = log|det dy/dx|`` in nats."""

    @abstractmethod
    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        """Map ``y`` to ``(x, ladj)``, with ``ladj = log|det dx/dy|`` in nats."""


@final
class FlowTransform(Transform, nn.Module):
    """A flow with its context bound, as a ``torch.distributions`` transform.

    Built fresh for each call and thrown away. It remembers its last ``(x, y, ladj)``, so that
    scoring a sample just drawn needs no inversion; the memory is matched by identity of the
    tensors and by the version of every parameter, is not used under inference mode, ``vmap`` or
    ``torch.compile``, and is left out of copies and pickles. Nothing else in the library remembers.

    Args:
        flow: The flow.
        context: Its context, if it takes one.

    Shape:
        As the flow; the event is the last axis, ``log_abs_det_jacobian`` is ``(*b,)``, in nats.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from pyro_nfvi.flows import Planar
        >>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> density = TransformedDistribution(base, [Planar(2).as_transform()])
        >>> density.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, flow: Bijection, context: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        Transform.__init__(self, cache_size=0)
        self.flow = flow
        self.context = context
        self._memo: _Memo | None = None

    __hash__ = nn.Module.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Return the transform itself: its memory needs no size."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        with recorded(self.flow):
            y, ladj = self.flow(x, self.context)
        self._remember(x, y, ladj)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        memo = self._recall(y=y)
        if memo is not None:
            return memo[0]
        with recorded(self.flow):
            x, ladj = self.flow.inverse(y, self.context)
        self._remember(x, y, -ladj)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log|det dy/dx|``, shape ``(*b,)``, in nats."""
        memo = self._recall(x=x, y=y)
        if memo is not None:
            return memo[2]
        with recorded(self.flow):
            ladj: Tensor = self.flow(x, self.context)[1]
        return ladj

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the image of a point of this shape."""
        if self.context is None:
            return shape
        batch = broadcast_shape(shape[:-1], self.context.shape[:-1])
        return torch.Size((*batch, shape[-1]))

    inverse_shape = forward_shape

    def _versions(self, x: Tensor, y: Tensor) -> _Versions | None:
        """Identity and version of all tensors that a result depends on; None: do not remember."""
        if torch.compiler.is_compiling():
            return None
        if torch.is_inference_mode_enabled():
            return None
        if is_transformed(unknown=True):
            return None
        tensors = [x, y, *self.flow.parameters(), *self.flow.buffers()]
        if self.context is not None:
            tensors.append(self.context)
        try:
            return tuple((id(tensor), tensor._version) for tensor in tensors)
        except RuntimeError:  # tensors made under inference mode keep no version
            return None

    def _remember(self, x: Tensor, y: Tensor, ladj: Tensor) -> None:
        versions = self._versions(x, y)
        if versions is not None:
            self._memo = (x, y, ladj, versions, torch.is_grad_enabled())

    def _recall(self, x: Tensor | None = None, y: Tensor | None = None) -> _Memo | None:
        memo = self._memo
        if memo is None or (x is not None and memo[0] is not x):
            return None
        if y is not None and memo[1] is not y:
            return None
        if memo[3] != self._versions(memo[0], memo[1]):
            return None
        # A result computed without a graph must not answer a question that needs one.
        return memo if memo[4] or not torch.is_grad_enabled() else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": None, "_inv": None}
