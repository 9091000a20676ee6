"""Laws of calculus: inverses, log-determinants, scores and a density that integrates to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi.flows._base import Flow
from pyro_nfvi.testing._case import FlowCase, Scope, gap, law

_DOUBLE = Scope(dtype=torch.float64)


def jacobian(y: Tensor, x: Tensor) -> Tensor:
    """Jacobians ``(n, D, D)`` of the rows of ``y`` in the rows of ``x``; rows independent."""
    columns = [
        torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[-1])
    ]
    return torch.stack(columns, 1)


def _spread(case: FlowCase, rows: int, salt: int = 0) -> Tensor:
    """Points of several sizes: most of order 1, one at 0, some of order 30; 1e5 in float64."""
    # In float32 a few layers that stretch leave no digit of a point so far out.
    far = (1.0, 1e3, 1e5) if case.dtype == torch.float64 else ()
    listed = (0.0, 0.3, 1.0, 2.0, 5.0, 30.0, *far)
    sizes = torch.tensor(listed, dtype=case.dtype, device=case.device)
    return case.points(rows, salt=salt) * sizes[torch.arange(rows) % len(sizes)].unsqueeze(-1)


@law("round trip")
def round_trip(case: FlowCase) -> None:
    """``f(inverse(y))`` is y within 1e-10 (1 + |y|), and the two log-determinants cancel.

    Where the flow puts its mass, and at arbitrary y of several sizes. At an arbitrary y far out
    in the tails the root x may be so large that its own rounding moves f(x) by more; a thousand
    times what the rounding does is allowed on top there.
    """
    for far in (0.0, 0.5, 1.0):
        flow = case.build(far=far)
        context = case.contexts(18)
        with torch.no_grad():
            typical = flow(case.points(18, scale=2.0, salt=1), context)[0]
        at = "far from initialisation" if far else "at initialisation"
        for y, where in ((typical, "where the mass is, "), (_spread(case, 18), "")):
            x, back = flow.inverse(y, context)
            again, ladj = flow(x, context)
            rounding = 0.0 if where else _rounding(case, flow, x, again, context)
            case.at_most(
                gap(again, y) - 1e3 * rounding,
                double=1e-10,
                single=1e-3,
                what=f"|f(inverse(y)) - y| / (1 + |y|), {where}{at}",
                hint="Solve with a bracketed method to the last digits, or use the closed form "
                "that does not cancel.",
            )
            case.at_most(
                gap(back, -ladj) - 1e3 * rounding,
                double=1e-8,
                single=1e-2,
                what=f"sum of the log-determinants of inverse and forward, {where}{at}",
                hint="inverse returns log|det dx/dy|, minus the forward's.",
            )


def _rounding(case: FlowCase, flow: Flow, x: Tensor, y: Tensor, context: Tensor | None) -> float:
    """Return the distance that y moves when x moves by its last digit."""
    step = torch.finfo(x.dtype).eps * case.weights(*x.shape).sign()
    return gap(flow(x * (1 + step), context)[0], y)


@law("left inverse", _DOUBLE)
def left_inverse(case: FlowCase) -> None:
    """``inverse(f(x))`` is x: no two points go to one."""
    flow = case.build(far=1.0)
    x, context = case.points(12, scale=1.5), case.contexts(12)
    y = flow(x, context)[0].detach().requires_grad_()
    back = flow.inverse(y, context)[0]
    # A rounding error of y grows by the norm of the inverse's Jacobian.
    growth = 1 + jacobian(back, y).abs().amax().item()
    case.at_most(
        gap(back, x) / growth,
        double=1e-9,
        what="|inverse(f(x)) - x| over the growth of rounding errors",
        hint="The map may not be one-to-one for all parameters: constrain them.",
    )


def _against_jacobian(case: FlowCase, flow: Flow, name: str) -> None:
    x, context = case.points(12, scale=1.5).requires_grad_(), case.contexts(12)
    y, ladj = flow(x, context) if name == "forward" else flow.inverse(x, context)
    signs, expected = torch.linalg.slogdet(jacobian(y, x))
    case.at_most(
        gap(ladj.detach(), expected),
        double=1e-8,
        what=f"|ladj - log|det J|| of {name}, with J by autograd",
        hint="Check the formula of ladj, its sign and its sum over the last axis.",
    )
    if not (signs == signs[0]).all():
        case.broken(
            f"the sign of det J of {name}: found both, allowed one",
            "The map folds space over: constrain its parameters.",
        )


@law("ladj", _DOUBLE)
def ladj(case: FlowCase) -> None:
    """forward's log-determinant is that of its autograd Jacobian, far from initialisation."""
    _against_jacobian(case, case.build(far=1.0), "forward")


@law("inverse ladj", _DOUBLE)
def inverse_ladj(case: FlowCase) -> None:
    """inverse's log-determinant is that of its own autograd Jacobian."""
    _against_jacobian(case, case.build(far=1.0), "inverse")


@law("score", _DOUBLE)
def score(case: FlowCase) -> None:
    """forward_with_score gives the gradient of log q at y, as autograd through inverse does."""
    for far in (0.0, 1.0):
        flow = case.build(far=far)
        x, context = case.points(9), case.contexts(9)
        expected_y, expected_ladj = flow(x, context)
        with torch.no_grad():
            quiet = flow.forward_with_score(x, -x, context)
        y, ladj, pushed = flow.forward_with_score(x, -x, context)
        point = y.detach().requires_grad_()
        back, back_ladj = flow.inverse(point, context)
        log_q = -0.5 * back.square().sum() + back_ladj.sum()
        (expected,) = torch.autograd.grad(log_q, point)
        hint = "The score goes forward by J^-T (score - grad ladj)."
        # Scores grow where the map contracts: compare with their own size.
        size = 1 + expected.abs().amax().item()
        error = gap(pushed / size, expected / size)
        case.at_most(error, double=1e-7, what="the score against autograd's", hint=hint)
        error = gap(quiet[2] / size, expected / size)
        case.at_most(error, double=1e-7, what="the score under no_grad", hint=hint)
        for got, reference in ((y, expected_y), (ladj, expected_ladj)):
            case.at_most(
                gap(got.detach(), reference.detach()),
                double=1e-10,
                what="forward_with_score's point and ladj against forward's",
                hint="Both must be the same map.",
            )
        if pushed.requires_grad:
            case.broken(
                "the score carries a gradient: found True, allowed False",
                "Detach it: path gradients hold it fixed.",
            )
        if y.requires_grad != expected_y.requires_grad:
            case.broken(
                f"the point of forward_with_score has requires_grad: found {y.requires_grad}, "
                f"allowed {expected_y.requires_grad}",
                "Only the score is detached.",
            )


@law("density", Scope(dtype=torch.float64, max_dim=2))
def density(case: FlowCase) -> None:
    """A standard normal pushed through the flow has a density that integrates to one (D <= 2)."""
    context = case.contexts()
    sizes = (4001, 100_001) if case.dim == 1 else (400, 1600)
    # Far out first. Where peaks are too sharp for the finer grid too, it says nothing: nearer.
    for far in (0.7, 0.3, 0.1):
        coarse, fine = _masses(case, case.build(far=far), context, sizes)
        if abs(coarse - 1) <= 2e-3:
            return
        if abs(fine - 1) <= 2e-3 or abs(fine - coarse) <= 2e-3:
            break
    case.at_most(
        abs(fine - 1),
        double=2e-3,
        what=f"|integral of the density - 1| on a grid of {sizes[1]}^{case.dim} points",
        hint="forward, inverse and ladj do not belong together, or the map is not onto.",
    )


def _masses(
    case: FlowCase, flow: Flow, context: Tensor | None, sizes: tuple[int, int]
) -> tuple[float, float]:
    """Integrals of the density on a coarse and, where that is not 1, on a fine grid."""
    with torch.no_grad():
        # The box holds the image of the disc of radius 5.5, outside which lies 3e-7 of the mass.
        directions = case.points(20000, salt=1)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        radius = torch.linspace(0, 5.5, 20000, dtype=case.dtype, device=case.device)
        image, _ = flow(directions * radius.unsqueeze(-1), context)
        bulk, _ = flow(case.points(4000, salt=2), context)
        coarse = _mass(flow, context, image, bulk, sizes[0])
        if abs(coarse - 1) <= 2e-3:
            return coarse, coarse
        return coarse, _mass(flow, context, image, bulk, sizes[1])


def _mass(flow: Flow, context: Tensor | None, image: Tensor, bulk: Tensor, size: int) -> float:
    r"""Integrate the density over the box of ``image`` by the trapezoidal rule.

    Each axis is warped, :math:`y = m + w \sinh t`, with m and w from the quantiles of the bulk,
    so that a long tail does not thin out the grid where the mass is.
    """
    low, middle, high = torch.quantile(bulk, bulk.new_tensor([0.25, 0.5, 0.75]), dim=0)
    width = (high - low) / 2
    axes, weights = [], []
    for i in range(flow.dim):
        ends = torch.asinh((torch.stack(image[:, i].aminmax()) - middle[i]) / width[i])
        margin = 0.02 * (ends[1] - ends[0])
        t = torch.linspace(
            float(ends[0] - margin), float(ends[1] + margin), size,
            dtype=image.dtype, device=image.device,
        )  # fmt: skip
        axes.append(middle[i] + width[i] * torch.sinh(t))
        weights.append(width[i] * torch.cosh(t) * (t[1] - t[0]))
    grid = torch.cartesian_prod(*axes).reshape(-1, flow.dim)
    weight = torch.cartesian_prod(*weights).reshape(-1, flow.dim).prod(-1)
    constant = -0.5 * flow.dim * math.log(2 * math.pi)
    total = 0.0
    for points, part in zip(grid.split(100_000), weight.split(100_000)):
        x, ladj = flow.inverse(points, context)
        density = (constant - 0.5 * x.square().sum(-1) + ladj).exp()
        total += (density * part).sum().item()
    return total


LAWS = (
    round_trip,
    left_inverse,
    ladj,
    inverse_ladj,
    score,
    density,
)
