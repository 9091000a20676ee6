"""Laws of the contract: shapes, errors, contexts, rows and the identity at initialisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.testing._case import FlowCase, Scope, gap, law

_Call = Callable[[Tensor, Tensor | None], TensorPair]


def _both(flow: Flow) -> tuple[tuple[str, _Call], ...]:
    return ("forward", flow), ("inverse", flow.inverse)


def _check_like(case: FlowCase, x: Tensor, outputs: tuple[Tensor, ...], name: str) -> None:
    shapes = [x.shape, x.shape[:-1], x.shape]
    for output, label, shape in zip(outputs, ("the point", "ladj", "the score"), shapes):
        what = f"{label} that {name} returns for a point of shape {tuple(x.shape)}"
        if output.shape != shape:
            case.broken(
                f"{what}: found shape {tuple(output.shape)}, allowed {tuple(shape)}",
                "Reduce over the last axis only, and expand constants to the batch.",
            )
        if output.dtype != x.dtype:
            case.broken(
                f"{what}: found {output.dtype}, allowed {x.dtype}",
                "Make constants like the input (x.new_zeros), not in the default dtype.",
            )
        if output.device != x.device:
            case.broken(
                f"{what}: found device {output.device}, allowed {x.device}",
                "Make constants on the input's device, and register buffers.",
            )


@law("shapes")
def shapes(case: FlowCase) -> None:
    """Any leading batch shape goes in and comes out, in the dtype and on the device it had."""
    flow = case.build(far=0.5)
    for batch in ((), (7,), (3, 2)):
        x, context = case.points(*batch), case.contexts(*batch)
        for name, call in _both(flow):
            _check_like(case, x, call(x, context), name)
        _check_like(case, x, flow.forward_with_score(x, -x, context), "forward_with_score")


@law("empty")
def empty(case: FlowCase) -> None:
    """A batch of no rows comes out as a batch of no rows."""
    flow = case.build()
    x, context = case.points(0), case.contexts(0)
    for name, call in _both(flow):
        _check_like(case, x, call(x, context), name)


@law("bad input", Scope(dtype=torch.float64))
def bad_input(case: FlowCase) -> None:
    """A wrong point raises ShapeError, a wrong context ShapeError, in both directions."""
    flow = case.build()
    x, context = case.points(4), case.contexts(4)
    wide = torch.cat([x, x[:, :1]], -1)
    trials: list[tuple[str, Tensor, Tensor | None, type[Exception]]] = [
        ("a point of the wrong size", wide, context, ShapeError),
        ("a point without axes", x[0, 0], context, ShapeError),
        ("a point of integers", x.long(), context, ShapeError),
    ]
    if context is None:
        superfluous = x.new_zeros(4, 2)
        trials += [("a superfluous context", x, superfluous, ShapeError)]
    else:
        trials += [
            ("a missing context", x, None, ShapeError),
            ("a context of the wrong size", x, torch.cat([context, context], -1), ShapeError),
            ("a context of another batch", x, context[:3], ShapeError),
        ]
    for name, call in _both(flow):
        for what, point, given, expected in trials:
            try:
                call(point, given)
                found = "no error"
            except expected:
                continue
            except Exception as error:
                found = type(error).__name__
            case.broken(
                f"{what} given to {name}: found {found}, allowed {expected.__name__}",
                "Begin with x, context = self.enter(x, context).",
            )


@law("broadcast", Scope(context=True))
def broadcast(case: FlowCase) -> None:
    """A context broadcasts against the points, and the points against the context."""
    flow = case.build(far=0.5)
    for point_batch, context_batch in (((7,), ()), ((), (7,)), ((3, 1), (7,)), ((1,), (5, 1))):
        x, context = case.points(*point_batch), case.contexts(*context_batch)
        assert context is not None
        batch = broadcast_shape(point_batch, context_batch)
        full_x, full_context = x.expand(*batch, -1), context.expand(*batch, -1)
        for name, call in _both(flow):
            for got, expected in zip(
                call(x, context), call(full_x.contiguous(), full_context.contiguous())
            ):
                case.at_most(
                    gap(got, expected),
                    double=1e-10,
                    single=1e-3,
                    what=f"{name} with batch {point_batch} and a context of {context_batch} "
                    "against both expanded",
                    hint="Let self.enter broadcast the point, and keep the parameters' batch "
                    "axes in front.",
                )


@law("rows")
def rows(case: FlowCase) -> None:
    """A row depends on no other row, nor on its place, nor on the number of rows."""
    flow = case.build(far=0.5)
    x, context = case.points(6), case.contexts(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2], device=x.device)
    changed = x.clone()
    changed[2] = 5 - 3 * changed[2]
    kept = torch.tensor([0, 1, 3, 4, 5], device=x.device)
    for name, call in _both(flow):
        expected = call(x, context)
        trials = {
            "changing another row": [part[kept] for part in call(changed, context)],
            "permuting the rows": call(x[order], None if context is None else context[order]),
            "taking one row alone": call(x[1:2], None if context is None else context[1:2]),
        }
        references = (kept, order, order.new_tensor([1]))
        for (what, got), index in zip(trials.items(), references):
            for part, reference in zip(got, expected):
                case.at_most(
                    gap(part, reference[index]),
                    double=1e-10,
                    single=1e-3,
                    what=f"a row of {name} after {what}",
                    hint="Rows must be independent: no statistics over the batch, and no loop "
                    "that stops when all rows together have converged.",
                )


@law("identity")
def identity(case: FlowCase) -> None:
    """At initialisation the flow is the identity, with a log-determinant of zero."""
    flow = case.build()
    x, context = case.points(9, scale=4.0), case.contexts(9)
    for name, call in _both(flow):
        y, ladj = call(x, context)
        for got, expected, what in ((y, x, "point"), (ladj, torch.zeros_like(ladj), "ladj")):
            case.at_most(
                gap(got, expected),
                double=1e-12,
                single=1e-5,
                what=f"distance of {name} from the identity at initialisation ({what})",
                hint="Start the parameters where the map is the identity: a guide then starts "
                "from a known density.",
            )


@law("conditional start", Scope(context=True))
def conditional_start(case: FlowCase) -> None:
    """At initialisation a conditional flow equals the unconditional one, whatever the context."""
    flow, plain = case.build(), case.build_unconditional()
    x, context = case.points(9, scale=2.0), case.contexts(9)
    assert context is not None
    for (name, call), (_, plain_call) in zip(_both(flow), _both(plain)):
        for got, expected in zip(call(x, 3 * context), plain_call(x, None)):
            case.at_most(
                gap(got, expected),
                double=1e-10,
                single=1e-4,
                what=f"{name} with a context against {name} without, at initialisation",
                hint="Give the net that reads the context a last layer of zero weight.",
            )


@law("context", Scope(context=True, once=True))
def context(case: FlowCase) -> None:
    """Far from initialisation the map of a row depends on the row's context."""
    flow = case.build(far=1.0)
    x, contexts = case.points(9), case.contexts(9)
    assert contexts is not None
    for name, call in _both(flow):
        moved = gap(call(x, contexts + 1)[0], call(x, contexts)[0])
        if not moved > 1e-4:
            case.broken(
                f"distance of {name} at two contexts, far from initialisation: found {moved:.3g}, "
                "allowed more than 0.0001",
                "Let the context reach the parameters, or build the flow without.",
            )


@law("extremes", Scope(dtype=torch.float32))
def extremes(case: FlowCase) -> None:
    """Values and gradients are finite at 0 and at |x| = 1000 in float32, near and far."""
    signs = case.points(8).sign()
    x = torch.cat([1e3 * signs, torch.zeros_like(signs[:1]), 1e3 * case.points(3)])
    context = case.contexts(len(x))
    hint = "Use forms that neither overflow nor divide by zero (log1p, softplus, clamped roots)."
    for far in (0.0, 1.0):
        flow = case.build(far=far)
        for name, call in _both(flow):
            point = x.clone().requires_grad_()
            y, ladj = call(point, context)
            at = f"at |x| = 1000, {'far from' if far else 'at'} initialisation"
            case.finite(y, f"points of {name} {at}", hint)
            case.finite(ladj, f"log-determinants of {name} {at}", hint)
            inputs = [point, *(p for p in flow.parameters() if p.requires_grad)]
            loss = y.sum() + ladj.sum()
            for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
                if gradient is not None:
                    case.finite(gradient, f"gradients of {name} {at}", hint)


LAWS = (
    shapes,
    empty,
    bad_input,
    broadcast,
    rows,
    identity,
    conditional_start,
    context,
    extremes,
)
