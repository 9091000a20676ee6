"""Laws of tracing: vmap, functional_call, make_fx and torch.compile give what eager gives."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_nfvi._typing import TensorPair
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.testing._case import FlowCase, Scope, gap, law, perturb

_DOUBLE = Scope(dtype=torch.float64)
_ONCE = Scope(dtype=torch.float64, once=True)
_Outputs = tuple[Tensor, ...]


def _calls(flow: Flow) -> dict[str, Callable[[Tensor, Tensor | None], _Outputs]]:
    """The three ways to call a flow, as functions of a point and a context."""
    return {
        "forward": lambda x, context: flow(x, context),
        "inverse": lambda x, context: flow.inverse(x, context),
        "forward_with_score": lambda x, context: flow.forward_with_score(x, -x, context),
    }


def _compare(case: FlowCase, found: _Outputs, expected: _Outputs, what: str, hint: str) -> None:
    for got, reference in zip(found, expected):
        case.at_most(gap(got.detach(), reference.detach()), double=1e-10, what=what, hint=hint)


@law("vmap", _DOUBLE)
def vmapped(case: FlowCase) -> None:
    """vmap over the rows equals a loop over them, both ways and for the score."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    dims = (0, None if context is None else 0)
    for name, call in _calls(flow).items():
        looped = [call(x[i], None if context is None else context[i]) for i in range(len(x))]
        expected = tuple(torch.stack(parts) for parts in zip(*looped))
        _compare(
            case,
            torch.vmap(call, in_dims=dims)(x, context),
            expected,
            f"{name} under vmap against a loop",
            "Branch with torch.where, never on a value; write nothing in place.",
        )


@law("functional_call", _DOUBLE)
def functional(case: FlowCase) -> None:
    """functional_call with other parameters equals a flow that has those parameters."""
    flow, other = case.build(), case.build()
    perturb(other, 0.5)
    x, context = case.points(5), case.contexts(5)
    parameters = {name: value.detach() for name, value in other.named_parameters()}
    _compare(
        case,
        functional_call(flow, parameters, (x, context)),
        other(x, context),
        "functional_call against a flow with those parameters",
        "Read the parameters in forward, not in the constructor.",
    )


@law("make_fx", _ONCE)
def graph(case: FlowCase) -> None:
    """A graph recorded by make_fx replays on other points: forward, and with the score."""
    for name in ("forward", "forward_with_score"):
        _record(case, name)


@law("make_fx inverse", _ONCE)
def graph_inverse(case: FlowCase) -> None:
    """A graph of inverse recorded by make_fx replays on other points."""
    _record(case, "inverse")


def _record(case: FlowCase, name: str) -> None:
    flow = case.build(far=0.5)
    call = _calls(flow)[name]
    recorded = make_fx(call)(case.points(5), case.contexts(5))
    x, context = case.points(5, salt=1), case.contexts(5, salt=1)
    _compare(
        case,
        recorded(x, context),
        call(x, context),
        f"the graph of {name}, recorded at other points, against eager",
        "Branch with torch.where, and loop a fixed number of times.",
    )


@law("compile", _ONCE)
def compiled(case: FlowCase) -> None:
    """torch.compile(fullgraph=True, backend="eager") of forward equals eager."""
    check_compiled(case)


@law("compile inverse", _ONCE)
def compiled_inverse(case: FlowCase) -> None:
    """torch.compile(fullgraph=True, backend="eager") of inverse equals eager."""
    check_compiled(case, inverse=True)


def check_compiled(case: FlowCase, *, inverse: bool = False, backend: str = "eager") -> None:
    """Compare a flow compiled with fullgraph=True by this backend of torch with eager."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    other_x, other_context = case.points(5, salt=1), case.contexts(5, salt=1)

    def call(point: Tensor, given: Tensor | None) -> TensorPair:
        return flow.inverse(point, given) if inverse else flow(point, given)

    # torch counts recompilations by code object; a copy begins at 0, and no cache of the user's
    # is thrown away.
    code = call.__code__.replace()
    own = types.FunctionType(code, call.__globals__, "call", None, call.__closure__)
    fast = torch.compile(own, fullgraph=True, backend=backend)
    fast(x, context)
    _compare(
        case,
        fast(other_x, other_context),
        call(other_x, other_context),
        f"{'inverse' if inverse else 'forward'} compiled against eager",
        "Branch with torch.where, loop a fixed number of times, and call no .item().",
    )


LAWS = (
    vmapped,
    functional,
    graph,
    graph_inverse,
    compiled,
    compiled_inverse,
)
