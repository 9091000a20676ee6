"""Parameters of a flow: free tensors, or a net of the context."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, TensorDict, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.flows._base import Flow


@final
class FreeParams(nn.Module):
    """Parameters that depend on nothing.

    Example:
        >>> import torch
        >>> FreeParams({"loc": torch.zeros(3)})()["loc"].shape
        torch.Size([3])
    """

    def __init__(self, initial: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in initial.items():
            self.register_parameter(name, nn.Parameter(value.clone()))
        self._names = tuple(initial)

    def forward(self, context: Tensor | None = None) -> TensorDict:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in self._names}


@final
class HyperNet(nn.Module):
    """Parameters that a one-layer net computes from the context.

    The last layer has zero weight and the free initial values as bias: whatever the context, a
    conditional flow starts equal to the unconditional one.

    Shape:
        ``context (*b, C)`` -> each parameter ``(*b, *its own shape)``.

    Example:
        >>> import torch
        >>> net = HyperNet({"loc": torch.zeros(3), "b": torch.zeros(())}, context_dim=2, hidden=8)
        >>> {name: tuple(value.shape) for name, value in net(torch.ones(5, 2)).items()}
        {'loc': (5, 3), 'b': (5,)}
    """

    def __init__(self, initial: Mapping[str, Tensor], context_dim: int, hidden: int) -> None:
        super().__init__()
        self._shapes = {name: tuple(value.shape) for name, value in initial.items()}
        self.hidden = nn.Linear(context_dim, hidden)
        self.last = nn.Linear(hidden, sum(value.numel() for value in initial.values()))
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.copy_(torch.cat([value.reshape(-1) for value in initial.values()]))

    def forward(self, context: Tensor) -> TensorDict:
        """Return the parameters by name, the batch shape of the context in front."""
        flat = self.last(torch.tanh(self.hidden(context)))
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        return {
            name: part.reshape(context.shape[:-1] + shape)
            for (name, shape), part in zip(self._shapes.items(), flat.split(sizes, -1), strict=True)
        }


class ParamFlow(Flow):
    """A flow whose parameters do not depend on the point.

    A subclass names its parameters once, in ``init_params``; with ``context_dim=0`` they are
    free, otherwise a :class:`HyperNet` of the context supplies them with a batch shape in
    front. The subclass then writes ``_forward`` and ``_inverse`` for both cases at once, with
    the point on the last axis. Numbers that a map cannot take at any size, such as the logarithm
    of a scale, are bounded in ``limit``: a net gives them for contexts that nobody has looked at,
    whereas a free number is where training put it.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 gives free parameters.
        hidden_dim: Width of the hyper-net's hidden layer (with a context only).
    """

    def __init__(self, dim: int, context_dim: int = 0, *, hidden_dim: int = 32) -> None:
        super().__init__(dim, context_dim)
        hidden_dim = whole(f"{type(self).__name__}: hidden_dim (of the context's net)", hidden_dim)
        initial = self.init_params()
        self.params: nn.Module = (
            HyperNet(initial, context_dim, hidden_dim) if context_dim else FreeParams(initial)
        )

    @abstractmethod
    def init_params(self) -> TensorDict:
        """Name the parameters: shapes and initial values."""

    def theta(self, context: Tensor | None = None) -> TensorDict:
        """Return the parameters at a context by name, within their limits."""
        theta: TensorDict = self.params(context)
        return self.limit(theta) if self.context_dim else theta

    def limit(self, theta: TensorDict) -> TensorDict:
        """Bound what a context's net gives; the initial values have to stay as they are."""
        return theta

    @abstractmethod
    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair: ...

    @abstractmethod
    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair: ...

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor | None:
        """Closed form of ``J^-T (score - grad ladj)``; None where there is none."""
        return None

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        return self._forward(x, self.theta(context))

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        return self._inverse(y, self.theta(context))

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, context = self.enter(x, context)
        theta = self.theta(context)
        with torch.no_grad():
            pushed = self._pull_score(x, score.expand_as(x), theta)
        if pushed is None:
            return super().forward_with_score(x, score.expand_as(x), context)
        y, ladj = self._forward(x, theta)
        return y, ladj, pushed
