"""Backward passes of chains that keep no activations: points come back by exact inverses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_nfvi._typing import TensorPair
from pyro_nfvi._user_warning import warn
from pyro_nfvi.flows._torch_transform import Bijection


class _Backwards(nn.Module):
    """The inverse of a map, as a module to call."""

    def __init__(self, flow: Bijection) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, y: Tensor, context: Tensor | None) -> TensorPair:
        return self.flow.inverse(y, context)


@dataclass(frozen=True)
class _Step:
    """A layer in the direction in which it is run, and where its tensors are among all."""

    flow: Bijection
    inverted: bool
    with_context: bool
    places: dict[str, int]

    def run(self, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor]) -> TensorPair:
        return self._call(x, context, tensors, inverted=self.inverted)

    def undo(self, y: Tensor, context: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
        return self._call(y, context, tensors, inverted=not self.inverted)[0]

    def _call(
        self, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor], *, inverted: bool
    ) -> TensorPair:
        # By the tensors of the forward pass: those of the module may be others by now, as within
        # functional_call.
        module = _Backwards(self.flow) if inverted else self.flow
        held = {("flow." * inverted) + name: tensors[i] for name, i in self.places.items()}
        given = (x, context if self.with_context else None)
        found: TensorPair = functional_call(module, held, given)
        return found


def run_reversibly(
    layers: Sequence[tuple[Bijection, bool, bool]], x: Tensor, context: Tensor | None
) -> TensorPair:
    """Run layers one after another, without memory of what is between them.

    Args:
        layers: ``(flow, inverted, with_context)`` in the order in which they run.
        x: The point, of the batch shape of the image.
        context: The context.
    """
    tensors: list[Tensor] = []
    index: dict[int, int] = {}
    steps = []
    for flow, inverted, with_context in layers:
        places = {}
        for name, tensor in (*flow.named_parameters(), *flow.named_buffers()):
            if id(tensor) not in index:
                index[id(tensor)] = len(tensors)
                tensors.append(tensor)
            places[name] = index[id(tensor)]
        steps.append(_Step(flow, inverted, with_context, places))
    inputs = [x, *([] if context is None else [context]), *tensors]
    if not any(one.requires_grad for one in inputs):
        return _run(steps, x, context, tensors)
    found: TensorPair = _Reversible.apply(steps, x, context, *tensors)
    return found


def _run(
    steps: Sequence[_Step], x: Tensor, context: Tensor | None, tensors: Sequence[Tensor]
) -> TensorPair:
    total = x.new_zeros(x.shape[:-1])
    for step in steps:
        x, ladj = step.run(x, context, tensors)
        total = total + ladj
    return x, total


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, steps: Sequence[_Step], x: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> TensorPair:
        y, ladj = _run(steps, x, context, tensors)
        ctx.steps = steps
        # Of the input for second derivatives, and to see that it comes back.
        ctx.save_for_backward(x, y, context, *tensors)
        return y, ladj

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_ladj: Tensor) -> tuple[Tensor | None, ...]:
        x, y, context, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        inputs = [x, context, *tensors]
        if torch.is_grad_enabled():  # derivatives of the derivatives are asked for
            return (None, *_stored(ctx.steps, inputs, needed, grad_y, grad_ladj, again=True))
        back, grads = _rebuilt(ctx.steps, [y, context, *tensors], needed, grad_y, grad_ladj)
        lost = (back - x).abs() / (1 + x.abs())
        allowed = torch.finfo(x.dtype).eps ** 0.5
        if bool((lost > allowed).any()):
            warn(
                "A reversible chain did not come back to its input by its inverses (relative "
                f"distance {float(lost.max()):.1g}), and computed this gradient with its "
                "activations in memory. Take float64 (.double()), or leave reversible out.",
            )
            grads = _stored(ctx.steps, inputs, needed, grad_y, grad_ladj, again=False)
        return (None, *grads)


def _stored(
    steps: Sequence[_Step],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_y: Tensor,
    grad_ladj: Tensor,
    *,
    again: bool,
) -> list[Tensor | None]:
    """Gradients by ordinary autograd from the input on; ``again`` keeps a graph of them."""
    with torch.enable_grad():
        # As new tensors: a context may itself depend on x.
        x, context, *tensors = [_copied(one, need, again) for one, need in zip(inputs, needed)]
        assert x is not None
        held = [one for one in tensors if one is not None]
        y, ladj = _run(steps, x, context, held)
        total = (y * grad_y).sum() + (ladj * grad_ladj).sum()
    return _gradients(total, [x, context, *tensors], needed, again=again)


def _copied(one: Tensor | None, need: bool, again: bool) -> Tensor | None:  # noqa: FBT001
    if one is None or not need:
        return one
    return one.view_as(one) if again else one.detach().requires_grad_()


def _gradients(
    total: Tensor, inputs: Sequence[Tensor | None], needed: Sequence[bool], *, again: bool
) -> list[Tensor | None]:
    asked = [one for one, need in zip(inputs, needed) if need and one is not None]
    if not asked or not total.requires_grad:
        return [None] * len(inputs)
    # Of a sum: autograd.grad imports sympy to look at cotangents.
    found = iter(torch.autograd.grad(total, asked, create_graph=again, allow_unused=True))
    return [next(found) if need and one is not None else None for one, need in zip(inputs, needed)]


def _rebuilt(
    steps: Sequence[_Step],
    outputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_y: Tensor,
    grad_ladj: Tensor,
) -> tuple[Tensor, list[Tensor | None]]:
    """Go back layer by layer; return the input as it came back, and the gradients."""
    y, context, *held = outputs
    assert y is not None
    tensors = [one for one in held if one is not None]
    grads: list[Tensor | None] = [None] * len(outputs)
    for step in reversed(steps):
        x = step.undo(y, context, tensors).detach()
        mine = sorted(set(step.places.values()))
        needs = [True, needed[1], *(needed[2 + i] for i in mine)]
        with torch.enable_grad():
            given = [x, context, *(tensors[i] for i in mine)]
            point, near, *own = [_copied(one, n, False) for one, n in zip(given, needs)]
            assert point is not None
            chosen = list(tensors)
            for i, one in zip(mine, own):
                assert one is not None
                chosen[i] = one
            image, ladj = step.run(point, near, chosen)
            total = (image * grad_y).sum() + (ladj * grad_ladj).sum()
        grad_y, *rest = _gradients(total, [point, near, *own], needs, again=False)  # type: ignore[assignment]
        for place, grad in zip([1, *(2 + i for i in mine)], rest):
            before = grads[place]
            grads[place] = grad if before is None else before if grad is None else before + grad
        y = x
    grads[0] = grad_y if needed[0] else None
    return y, grads
