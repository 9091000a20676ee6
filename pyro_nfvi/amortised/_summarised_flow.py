"""Flows whose context goes through a network first, or is given once and for all."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, Points
from pyro_nfvi.flows._base import Flow


@final
class SummarisedFlow(Flow):
    """A conditional flow of a summary of its context; both are trained together.

    Args:
        flow: The flow, of a context of as many numbers as the network returns.
        network: Maps contexts ``(*b, C)`` to summaries ``(*b, K)``.
        context_dim: C.
    """

    def __init__(self, flow: Flow, network: nn.Module, context_dim: int) -> None:
        super().__init__(flow.dim, context_dim)
        self.flow, self.network = flow, network
        self.inverse_kind = flow.inverse_kind

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        return self.flow(x, self.network(context))

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        return self.flow.inverse(y, self.network(context))


@final
class FlowAt(Flow):
    """A conditional flow at one context, as a flow without any.

    Args:
        flow: The flow; its parameters are shared.
        context: The context ``(C,)``.
    """

    def __init__(self, flow: Flow, context: Tensor) -> None:
        super().__init__(flow.dim)
        self.flow = flow
        self.register_buffer("context", context.detach().clone())
        self.context: Tensor
        self.inverse_kind = flow.inverse_kind

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        return self.flow(x, self.context)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        return self.flow.inverse(y, self.context)
