"""Laws of purity: a call changes nothing, remembers nothing, and flows can be copied and saved."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi.flows._base import Flow
from pyro_nfvi.testing._case import FlowCase, Scope, gap, law, perturb

_DOUBLE = Scope(dtype=torch.float64)


def _outputs(flow: Flow, x: Tensor, context: Tensor | None) -> list[Tensor]:
    return [
        part.detach().clone()
        for part in (
            *flow(x, context),
            *flow.inverse(x, context),
            *flow.forward_with_score(x, -x, context),
        )
    ]


def _frozen(value: Any) -> Any:
    """Something comparable that changes when the value, or what it holds, is replaced."""
    if isinstance(value, Tensor):
        return ("tensor", id(value), value._version)
    if isinstance(value, dict):
        return ("dict", tuple((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple, set)):
        return (type(value).__name__, tuple(_frozen(item) for item in value))
    if isinstance(value, (int, float, str, type(None))):
        return value
    return (type(value).__name__, id(value))


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {
        f"{path}.{name}".lstrip("."): _frozen(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
    }


@law("purity")
def purity(case: FlowCase) -> None:
    """A call writes no attribute, changes no state, input or generator, and repeats itself."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    kept_x, kept_context = x.clone(), None if context is None else context.clone()
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    attributes, random = _attributes(flow), torch.get_rng_state()
    first = _outputs(flow, x, context)
    second = _outputs(flow, x, context)
    flow.eval()
    evaluated = _outputs(flow, x, context)
    flow.train()

    if not torch.equal(random, torch.get_rng_state()):
        case.broken(
            "the global random number generator: found another state, allowed the same",
            "A flow is a function: draw nothing in forward or inverse.",
        )
    after = _attributes(flow)
    written = sorted(k for k in {*attributes, *after} if attributes.get(k) != after.get(k))
    if written:
        case.broken(
            f"attributes written by a call: found {', '.join(written)}, allowed none",
            "Return what you computed; keep nothing on the module.",
        )
    changed = [k for k, value in flow.state_dict().items() if not torch.equal(value, state[k])]
    if changed:
        case.broken(
            f"state changed by a call: found {', '.join(changed)}, allowed none",
            "Return what you computed; keep nothing on the module.",
        )
    if not torch.equal(x, kept_x) or (
        context is not None and kept_context is not None and not torch.equal(context, kept_context)
    ):
        case.broken("the input: found changed, allowed the same", "Use no in-place operation.")
    for other, what in ((second, "a second call"), (evaluated, "a call in eval mode")):
        for got, expected in zip(other, first):
            case.at_most(
                gap(got, expected),
                double=0.0,
                what=f"{what} against the first",
                hint="The result may depend on the point, context and parameters only.",
            )


@law("fresh", _DOUBLE)
def fresh(case: FlowCase) -> None:
    """After the parameters change in place, the same points give the new values."""
    flow = case.build()
    if not any(True for _ in flow.parameters()):
        return
    x, context = case.points(5), case.contexts(5)
    _outputs(flow, x, context)
    perturb(flow, 0.5)
    other = case.build()
    other.load_state_dict(flow.state_dict())
    for got, expected in zip(_outputs(flow, x, context), _outputs(other, x, context)):
        case.at_most(
            gap(got, expected),
            double=1e-12,
            what="a call after an in-place update of the parameters against a fresh flow",
            hint="Cache nothing that was computed from parameters.",
        )


@law("modes", _DOUBLE)
def modes(case: FlowCase) -> None:
    """Under no_grad and inference_mode the numbers are the same."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    expected = [part.detach() for part in (*flow(x, context), *flow.inverse(x, context))]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = [*flow(x, context), *flow.inverse(x, context)]
        for got, reference in zip(found, expected):
            case.at_most(
                gap(got, reference),
                double=1e-12,
                what=f"a call under {mode.__name__} against one outside",
                hint="The value may not depend on whether gradients are recorded.",
            )


@law("copies")
def copies(case: FlowCase) -> None:
    """After a backward pass the flow can be copied, pickled, and saved into another one."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    parts = (*flow(x, context), *flow.inverse(x, context))
    loss = torch.stack([part.sum() for part in parts]).sum()
    if loss.requires_grad:
        loss.backward()
    expected = _outputs(flow, x, context)

    saved = io.BytesIO()
    torch.save(flow.state_dict(), saved)
    saved.seek(0)
    # Another seed: what the state dict does not hold must not be random.
    loaded = case.build(seed=7)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    others = {
        "a deep copy": copy.deepcopy(flow),
        "a pickled copy": pickle.loads(pickle.dumps(flow)),
        "a flow that loaded the state dict": loaded,
    }
    for what, other in others.items():
        for got, reference in zip(_outputs(other, x, context), expected):
            case.at_most(
                gap(got, reference),
                double=1e-12,
                single=1e-6,
                what=f"{what} against the flow",
                hint="Register what the flow depends on as parameter or persistent buffer, or "
                "derive it from the constructor's arguments; keep no graph and no closure.",
            )


LAWS = (
    purity,
    fresh,
    modes,
    copies,
)
