"""A flow with its context bound: what the context costs is paid once, not for every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._typing import TensorDict, TensorPair, TensorTriple
from pyro_nfvi.flows._base import Flow, Layer
from pyro_nfvi.flows._conditioning import HyperNet, ParamFlow


class LinearParams(nn.Module):
    """Parameters of a layer that are a linear map of the context: the papers' amortisation.

    Takes the place of a ``HyperNet``. The weight starts at zero and the bias
    at the free initial values, so that the layer starts as the unconditional one.

    Shape:
        ``context (*b, C)`` -> each parameter ``(*b, *its own shape)``.

    Source: van den Berg et al. 2018, arXiv:1803.05649, section 4.
    """

    def __init__(self, net: HyperNet) -> None:
        super().__init__()
        self._shapes = dict(net._shapes)
        bias = net.last.bias.detach()
        self.linear = nn.Linear(net.hidden.in_features, len(bias)).to(bias)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(bias)

    def forward(self, context: Tensor) -> TensorDict:
        """Return the parameters by name, the batch shape of the context in front."""
        parts = self.linear(context).split(_sizes(self._shapes), -1)
        return {
            name: part.reshape(context.shape[:-1] + shape)
            for (name, shape), part in zip(self._shapes.items(), parts)
        }


def _sizes(shapes: dict[str, tuple[int, ...]]) -> list[int]:
    return [torch.Size(shape).numel() for shape in shapes.values()]


def amortize_linearly(flow: Flow) -> None:
    """Let every hyper-net of a flow's layers be a linear map of the context instead."""
    for part in flow.modules():
        if isinstance(part, ParamFlow) and isinstance(part.params, HyperNet):
            part.params = LinearParams(part.params)


@dataclass(frozen=True)
class _Step:
    """A layer, which way round it runs, and what the context has become for it."""

    layer: Flow
    theta: TensorDict | None
    context: Tensor | None
    flipped: bool

    def run(self, x: Tensor, *, backwards: bool) -> TensorPair:
        backwards = backwards != self.flipped
        if self.theta is not None:
            assert isinstance(self.layer, ParamFlow)
            method = self.layer._inverse if backwards else self.layer._forward
            return _per_row(method, x, self.theta)
        if backwards:
            return self.layer.inverse(x, self.context)
        return self.layer(x, self.context)

    def run_with_score(self, x: Tensor, score: Tensor) -> TensorTriple:
        layer = self.layer
        own = isinstance(layer, ParamFlow) and type(layer)._pull_score is not ParamFlow._pull_score
        if self.theta is None or self.flipped or not own:
            context = self.context
            flow = layer.inv if self.flipped else layer
            return flow.forward_with_score(x, score, context)
        assert isinstance(layer, ParamFlow)
        with torch.no_grad():
            held = {name: value.detach() for name, value in self.theta.items()}
            pushed = _per_row(layer._pull_score, x.detach(), held, score)
        y, ladj = _per_row(layer._forward, x, self.theta)
        return y, ladj, pushed


def _per_row(method: Callable[..., Any], x: Tensor, theta: TensorDict, *more: Tensor) -> Any:
    """Run a layer whose parameters differ from row to row on ``(B, D)`` or ``(S, B, D)``.

    With samples in front the layer is mapped over the rows, so that the samples of a row share its
    parameters in one matrix product; broadcasting would copy the parameters S times.
    """
    if x.dim() == 2:
        return method(x, *more, theta)
    if x.shape[0] == 1:
        found = method(x[0], *(value[0] for value in more), theta)
        if isinstance(found, tuple):
            return tuple(value.unsqueeze(0) for value in found)
        return found.unsqueeze(0)
    axes = (1, *(1 for _ in more), 0)
    return torch.func.vmap(method, in_dims=axes, out_dims=1)(x, *more, theta)


class BoundFlow:
    """A flow at one context: forward, inverse and score for as many samples as wanted.

    Parameters that a layer computes from the context are computed here, once. A layer whose net
    sees point and context together (autoregressive, coupling) is given the context as it is.

    Args:
        flow: The flow; None for the identity.
        context: Its context ``(B, C)``, if it takes one.

    Shape:
        Points are ``(B, D)`` or ``(S, B, D)``; log-determinants ``(B,)`` or ``(S, B)``, in nats.
    """

    @full_precision
    def __init__(self, flow: Flow | None, context: Tensor | None) -> None:
        layers = [] if flow is None else flow.layers()
        self._steps = [_bind(layer, context) for layer in layers]

    @full_precision
    def forward(self, x: Tensor) -> TensorPair:
        """Map base points to ``(z, ladj)``."""
        total = x.new_zeros(x.shape[:-1])
        for step in self._steps:
            x, ladj = step.run(x, backwards=False)
            total = total + ladj
        return x, total

    @full_precision
    def inverse(self, z: Tensor) -> TensorPair:
        """Map points back to ``(x, ladj)``."""
        total = z.new_zeros(z.shape[:-1])
        for step in reversed(self._steps):
            z, ladj = step.run(z, backwards=True)
            total = total + ladj
        return z, total

    @full_precision
    def forward_with_score(self, x: Tensor, score: Tensor) -> TensorTriple:
        """Push points and the score of their density together; the score carries no graph."""
        total = x.new_zeros(x.shape[:-1])
        for step in self._steps:
            x, ladj, score = step.run_with_score(x, score)
            total = total + ladj
        return x, total, score


def _bind(layer: Layer, context: Tensor | None) -> _Step:
    flow, inverted = layer.flow, layer.inverted
    if not flow.context_dim or context is None:
        return _Step(flow, None, None, inverted)
    theta = flow.theta(context) if isinstance(flow, ParamFlow) else None
    return _Step(flow, theta, context, inverted)
