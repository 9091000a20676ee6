"""Laws of gradients: every parameter is reached, and the inverse differentiates as it should."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi.flows._base import Flow
from pyro_nfvi.testing._calculus import jacobian
from pyro_nfvi.testing._case import FlowCase, Scope, gap, law

_DOUBLE = Scope(dtype=torch.float64)


def _trainable(flow: Flow) -> dict[str, Tensor]:
    # An empty tensor (a weight of no context) is no parameter.
    return {name: p for name, p in flow.named_parameters() if p.requires_grad and p.numel()}


@law("gradients")
def gradients(case: FlowCase) -> None:
    """Every trainable parameter gets a finite gradient, both ways; at the start some is not 0."""
    for far in (0.0, 0.7):
        flow = case.build(far=far)
        parameters = _trainable(flow)
        if not parameters:
            return
        x, context = case.points(9), case.contexts(9)
        if context is not None:
            context.requires_grad_()
        inputs = parameters if context is None else {**parameters, "the context": context}
        for name, call in (("forward", flow), ("inverse", flow.inverse)):
            y, ladj = call(x, context)
            loss = (case.weights(9, case.dim) * y).sum() + (case.weights(9) * ladj).sum()
            found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
            for label, gradient in zip(inputs, found):
                if gradient is None:
                    case.broken(
                        f"the gradient of {name} in {label}: found None, allowed a tensor",
                        "It is not used, or was detached on the way.",
                    )
                else:
                    case.finite(
                        gradient,
                        f"the gradient of {name} in {label}",
                        "Guard square roots, norms and the branch of torch.where not taken.",
                    )
            largest = max(float(g.abs().max()) for g in found if g is not None)
            if largest == 0:
                case.broken(
                    f"the largest gradient of {name}: found 0, allowed above 0",
                    "No parameter can leave this point: start some factor away from 0.",
                )


@law("inverse gradients", _DOUBLE)
def inverse_gradients(case: FlowCase) -> None:
    r"""inverse's gradients in the point, context and parameters obey the implicit formula.

    With :math:`L = a^\top x + c\,\mathrm{ladj}` at :math:`x = f^{-1}(y)` and
    :math:`v = J^{-\top}(a - c \nabla_x \log|\det J|)`, the gradient in y is v and the gradient
    in a parameter is :math:`-v^\top \partial_\theta f - c\,\partial_\theta \log|\det J|`; so
    autograd through forward is enough to know it.
    """
    flow = case.build(far=0.7)
    y, context = case.points(7).requires_grad_(), case.contexts(7)
    if context is not None:
        context.requires_grad_()
    held = {} if context is None else {"the context": context}
    inputs = {**held, **_trainable(flow)}
    a, c = case.weights(7, case.dim), case.weights(7, salt=1)

    back, back_ladj = flow.inverse(y, context)
    loss = (a * back).sum() + (c * back_ladj).sum()
    found = torch.autograd.grad(loss, [y, *inputs.values()], allow_unused=True)

    x = back.detach().requires_grad_()
    image, ladj = flow(x, context)
    pull = a
    if ladj.requires_grad:
        grad_ladj = torch.autograd.grad(ladj.sum(), x, retain_graph=True, materialize_grads=True)
        pull = a - c.unsqueeze(-1) * grad_ladj[0]
    v = torch.linalg.solve(jacobian(image, x).mT, pull.unsqueeze(-1)).squeeze(-1)
    implicit = -(v * image).sum() - (c * ladj).sum()
    expected = [v]
    if inputs:
        expected += torch.autograd.grad(implicit, list(inputs.values()), materialize_grads=True)

    for label, got, reference in zip(["the point", *inputs], found, expected):
        if got is None:
            case.broken(
                f"the gradient of inverse in {label}: found None, allowed a tensor",
                "A root found without gradient needs one more differentiable Newton step.",
            )
            continue
        size = 1 + reference.abs().max().item()
        case.at_most(
            gap(got / size, reference / size),
            double=1e-7,
            what=f"the gradient of inverse in {label} against the implicit formula",
            hint="A root found without gradient needs one more differentiable Newton step, in "
            "which parameters and point both carry their gradient.",
        )


@law("second derivatives", _DOUBLE)
def second_derivatives(case: FlowCase) -> None:
    """Second derivatives in the point, both ways, agree with differences of the first."""
    flow = case.build(far=0.5)
    x, context = case.points(5), case.contexts(5)
    a, c = case.weights(5, case.dim), case.weights(5, salt=1)
    direction = case.weights(5, case.dim, salt=2)

    def first(point: Tensor, *, backward: bool) -> Tensor:
        point = point if point.requires_grad else point.clone().requires_grad_()
        y, ladj = flow.inverse(point, context) if backward else flow(point, context)
        loss = (a * y).sum() + (c * ladj).sum()
        return torch.autograd.grad(loss, point, create_graph=True)[0]

    for backward in (False, True):
        name = "inverse" if backward else "forward"
        point = x.clone().requires_grad_()
        gradient = first(point, backward=backward)
        along = (gradient * direction).sum()
        if along.requires_grad:
            found = torch.autograd.grad(along, point, materialize_grads=True)[0]
        else:
            found = torch.zeros_like(point)
        step = 1e-5
        ahead = first(x + step * direction, backward=backward).detach()
        behind = first(x - step * direction, backward=backward).detach()
        # Rows are independent and Hessians symmetric: H d by differences along d.
        expected = (ahead - behind) / (2 * step)
        case.finite(found, f"second derivatives of {name}", "Guard roots, norms and torch.where.")
        size = 1 + expected.abs().max().item()
        case.at_most(
            gap(found / size, expected / size),
            double=1e-4,
            what=f"second derivatives of {name} against differences of the first",
            hint="A root found without gradient needs two differentiable Newton steps for this.",
        )


LAWS = (
    gradients,
    inverse_gradients,
    second_derivatives,
)
