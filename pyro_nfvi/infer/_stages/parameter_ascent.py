"""Ascent of the evidence in a model's parameters, on common draws with importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi.infer._recipe import PARAMETERS


class Evidence:
    r"""The log evidence as a function of the model's parameters, from draws that stay.

    .. math:: \hat L(\phi) = \log \frac1S \sum_s \frac{p(x, z_s; \phi)}{q(z_s)}, \qquad
        \nabla \hat L = \sum_s w_s(\phi) \nabla_\phi \log p(x, z_s; \phi)

    By Fisher's identity the gradient is that of the evidence at the posterior that the weights see.
    Where they see hardly anything (fewer than ten effective draws), draws count evenly:
    :math:`\frac1S\sum_s \log p(x, z_s; \phi)` is what a step of EM raises, and with it the ELBO.

    Args:
        log_density: Log joint of rows ``(S, D) -> (S,)``, differentiable in the leaves.
        z: Draws ``(S, D)``.
        log_q: Their log density ``(S,)``.
        leaves: The unconstrained parameters, which are read and written in place.
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        z: Tensor,
        log_q: Tensor,
        leaves: Sequence[Tensor],
    ) -> None:
        self.log_density, self.z, self.log_q = log_density, z, log_q.double()
        self.leaves = list(leaves)
        with torch.no_grad():
            self.even = not self.effective(self.log_weights()) >= PARAMETERS.fewest_effective

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(leaf.numel() for leaf in self.leaves)

    def log_weights(self) -> Tensor:
        """Log weights of the draws at the present parameters; -inf where there is none."""
        log_w = self.log_density(self.z).double() - self.log_q
        return torch.where(torch.isfinite(log_w), log_w, torch.full_like(log_w, -torch.inf))

    @staticmethod
    def effective(log_w: Tensor) -> float:
        """Effective number of draws."""
        weights = torch.softmax(log_w.detach(), 0)
        return float(1 / weights.square().sum())

    def value(self) -> tuple[Tensor, float]:
        """The estimate, differentiable, and the effective number of draws."""
        log_w = self.log_weights()
        if self.even:
            ok = torch.isfinite(log_w)
            few = int(ok.sum()) < PARAMETERS.finite_share * len(log_w)
            mean = torch.where(ok, log_w, torch.zeros_like(log_w)).sum() / ok.sum().clamp_min(1)
            return (mean - torch.inf if few else mean), float(len(log_w))
        return torch.logsumexp(log_w, 0) - math.log(len(log_w)), self.effective(log_w)

    def gradient(self, *, graph: bool = False) -> tuple[float, Tensor, float]:
        """Value, gradient ``(P,)`` in float64, effective draws."""
        with torch.enable_grad():
            value, effective = self.value()
            found: Sequence[Tensor | None] = [None] * len(self.leaves)
            if value.requires_grad:  # else the model makes nothing of its parameters
                found = torch.autograd.grad(
                    value, self.leaves, create_graph=graph, allow_unused=True
                )
        return float(value.detach()), _flat(found, self.leaves), effective

    def hessian(self, gradient: Tensor) -> Tensor:
        """Second derivatives ``(P, P)``, from a gradient with its graph."""
        rows = []
        for place in range(len(gradient)):
            if not gradient[place].requires_grad:
                rows.append(torch.zeros_like(gradient))
                continue
            found = torch.autograd.grad(
                gradient[place], self.leaves, retain_graph=True, allow_unused=True
            )
            rows.append(_flat(found, self.leaves))
        return torch.stack(rows).detach()

    def look(self) -> tuple[float, float]:
        """Value and effective draws, without gradients."""
        with torch.no_grad():
            value, effective = self.value()
        return float(value), effective

    def get(self) -> Tensor:
        """The parameters as one vector ``(P,)``, float64."""
        return torch.cat([leaf.detach().reshape(-1).double() for leaf in self.leaves])

    def put(self, vector: Tensor) -> None:
        """Write the parameters."""
        with torch.no_grad():
            start = 0
            for leaf in self.leaves:
                part = vector[start : start + leaf.numel()]
                leaf.copy_(part.reshape(leaf.shape).to(leaf))
                start += leaf.numel()


@dataclass(frozen=True)
class Ascent:
    """Result of an ascent.

    Attributes:
        gain: Nats that it gained, on its own draws.
        units: How far each parameter moves the evidence by half a nat, ``(P,)``; None where no
            second derivatives were taken.
        limited: True if the weights, not the maximum, ended it.
    """

    gain: float
    units: Tensor | None = None
    limited: bool = False


def raise_evidence(
    evidence: Evidence,
    generator: torch.Generator,
    *,
    steps: int = PARAMETERS.steps,
    budget: Budget = UNLIMITED,
) -> Ascent:
    r"""Move the parameters to where the estimated evidence is highest, in place.

    Up to 40 parameters: damped Newton steps in units of their own, :math:`u_i = |\partial^2 \hat
    L / \partial\phi_i^2|^{-1/2}`, with the absolute eigenvalues of the scaled Hessian, so that a
    saddle is left. More parameters, or a model without second derivatives: L-BFGS with ten pairs,
    in units from the row norms of the Hessian. A step is taken if it gains, and leaves 30 % of
    the effective draws. Where the budget is spent, they stay where they are by then.

    Args:
        evidence: The evidence as a function of the parameters.
        generator: Source of the signs from which L-BFGS takes its units.
        steps: Most steps.
        budget: Time.

    Cost:
        Up to 40 steps of P + 2 backward passes (L-BFGS: of one, after nine) over all draws.
    """
    if not evidence.leaves:
        return Ascent(0.0)
    if evidence.count <= PARAMETERS.newton_params:
        try:
            return _newton(evidence, steps, budget)
        except RuntimeError:  # an operation of the model without a second derivative
            pass
    return _quasi_newton(evidence, generator, steps, budget)


def _newton(evidence: Evidence, steps: int, budget: Budget) -> Ascent:
    start, damping, limited = None, PARAMETERS.damping, False
    units: Tensor | None = None
    value = 0.0
    for step in range(steps):
        if step and budget.over():
            break
        here = evidence.get()
        value, gradient, effective = evidence.gradient(graph=True)
        start = value if start is None else start
        if not math.isfinite(value):
            break
        hessian = evidence.hessian(gradient)
        gradient = gradient.detach()
        if not bool(torch.isfinite(hessian).all() and torch.isfinite(gradient).all()):
            raise RuntimeError("second derivatives are not finite")
        scale = hessian.diagonal().abs().sqrt()
        # What the evidence does not depend on keeps a unit of one.
        units = _inverse(scale)
        values, vectors = torch.linalg.eigh(-hessian * units * units.unsqueeze(-1))
        turned = vectors.mT @ (units * gradient)
        # Where the evidence curves upward a small gradient is no rest: at least one unit is gone.
        least = values.abs().sqrt().copysign(turned)
        saddle = (values < -PARAMETERS.upward) & (turned.abs() < least.abs())
        turned = torch.where(saddle, least, turned)
        moved = False
        while damping <= PARAMETERS.most_damping:
            curvature = values.abs() + damping
            if float(0.5 * (turned.square() / curvature).sum()) < PARAMETERS.least_gain:
                return Ascent(value - start, units, limited)
            evidence.put(here + units * (vectors @ (turned / curvature)))
            after, left = evidence.look()
            gained = math.isfinite(after) and after > value
            if gained and left >= min(PARAMETERS.ess_share * effective, effective):
                moved = True
                damping = max(PARAMETERS.damping_down * damping, PARAMETERS.least_damping)
                break
            limited = limited or gained
            evidence.put(here)
            damping = max(PARAMETERS.damping_up * damping, PARAMETERS.damping)
        if not moved:
            break
        value = after
    return Ascent(value - (value if start is None else start), units, limited)


def _own_units(evidence: Evidence, generator: torch.Generator) -> Tensor | None:
    r"""Estimate units ``(P,)`` from products of the Hessian with random signs.

    :math:`u_i = (\sum_j H_{ij}^2)^{-1/4}`, the row norm being the mean of :math:`(Hv)_i^2`: exact
    for a diagonal Hessian, and never far too large, as a noisy diagonal could be. None without
    second derivatives.

    Source: Dauphin, de Vries and Bengio 2015, arXiv:1502.04390 (equilibration).
    """
    try:
        _, gradient, _ = evidence.gradient(graph=True)
        total = torch.zeros_like(gradient.detach())
        for _ in range(PARAMETERS.sign_vectors):
            v = _signs(gradient, generator)
            found = torch.autograd.grad(
                gradient @ v, evidence.leaves, retain_graph=True, allow_unused=True
            )
            total += _flat(found, evidence.leaves).square()
    except RuntimeError:  # an operation of the model without a second derivative
        return None
    scale = (total / PARAMETERS.sign_vectors).pow(0.25)
    if not bool(torch.isfinite(scale).all()):
        return None
    return _inverse(scale)


def _inverse(scale: Tensor) -> Tensor:
    """One over square roots of curvatures; one where there is none."""
    least = PARAMETERS.no_curvature
    return torch.where(scale > least, 1 / scale.clamp_min(least), torch.ones_like(scale))


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw -1 and 1 in even shares, of a tensor's shape and type."""
    shape, device = like.shape, generator.device
    return torch.randint(0, 2, shape, generator=generator, device=device).to(like) * 2 - 1


def _quasi_newton(
    evidence: Evidence, generator: torch.Generator, steps: int, budget: Budget
) -> Ascent:
    value, gradient, effective = evidence.gradient()
    start, floor = value, PARAMETERS.ess_share * effective
    if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
        return Ascent(0.0)
    found = _own_units(evidence, generator)
    units = torch.ones_like(gradient) if found is None else found
    gradient = units * gradient
    pairs: list[tuple[Tensor, Tensor]] = []
    limited = False
    for step in range(steps):
        if step and budget.over():
            break
        here = evidence.get()
        direction = _two_loop(gradient, pairs)
        slope = float(direction @ gradient)
        if not math.isfinite(slope) or slope <= 0:
            direction, pairs = gradient, []
            slope = float(direction @ gradient)
        # Without units the first step promises one nat; later ones are in those that were learnt.
        unknown = found is None and not pairs
        length = min(1.0, 1.0 / max(slope, 1e-30)) if unknown else 1.0
        for _ in range(PARAMETERS.halvings):
            evidence.put(here + length * units * direction)
            after, left = evidence.look()
            gained = math.isfinite(after) and after >= value + PARAMETERS.armijo * length * slope
            if gained and left >= floor:
                break
            limited = limited or gained
            length *= 0.5
        else:
            evidence.put(here)
            break
        now, new, effective = evidence.gradient()
        new = units * new
        change, turn = (evidence.get() - here) / units, gradient - new
        if float(change @ turn) > PARAMETERS.pair_curvature * float(turn @ turn):
            pairs = [*pairs[-PARAMETERS.memory + 1 :], (change, turn)]
        small = now - value < PARAMETERS.least_gain and step + 1 >= PARAMETERS.fewest_steps
        value, gradient = now, new
        if small:
            break
    return Ascent(value - start, None, limited)


def _two_loop(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """L-BFGS direction of ascent (Nocedal and Wright 2006, algorithm 7.4)."""
    direction, factors = gradient.clone(), []
    for change, turn in reversed(pairs):
        factor = (change @ direction) / (change @ turn)
        direction = direction - factor * turn
        factors.append(factor)
    if pairs:
        change, turn = pairs[-1]
        direction = direction * (change @ turn) / (turn @ turn)
    for (change, turn), factor in zip(pairs, reversed(factors)):
        direction = direction + change * (factor - (turn @ direction) / (change @ turn))
    return direction


def nats_left(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    log_q: Tensor,
    leaves: Mapping[str, Tensor],
    generator: torch.Generator,
    budget: Budget = UNLIMITED,
) -> tuple[float, float] | None:
    """Estimate how much evidence the parameters still give away; they stay where they are.

    They ascend on one half of the draws, and the other half says what that gained, at several parts
    of the way; then with the halves exchanged. What was not seen during the ascent is no gain by
    chance, whatever the number of parameters, and it can only be too small: it is what a short
    ascent reaches. Ascents start at the parameters; where steps are not Newton's, a part of a unit
    away, so that a saddle is left; and with those moved on which the evidence does not depend where
    they are.

    Returns:
        Nats and their standard error; None where the weights say nothing, the evidence has no
        finite gradient at the parameters, or the budget was spent before both halves had ascended.
    """
    found, errors = [], []
    for mine, other in ((0, 1), (1, 0)):
        if budget.over():
            return None
        fitting = Evidence(log_density, z[mine::2], log_q[mine::2], list(leaves.values()))
        held_out = Evidence(log_density, z[other::2], log_q[other::2], list(leaves.values()))
        if fitting.even or held_out.even:
            return None
        start = fitting.get()
        gradient = fitting.gradient()[1]
        if not bool(torch.isfinite(gradient).all()):
            return None
        with torch.no_grad():
            before = held_out.log_weights()
        gains = []
        try:
            for begin in _places(fitting, start, gradient, generator):
                fitting.put(begin)
                raise_evidence(fitting, generator, budget=budget)
                end = fitting.get()
                for part in PARAMETERS.parts:
                    held_out.put(start + part * (end - start))
                    with torch.no_grad():
                        after = held_out.log_weights()
                    gains.append(_gain(before, after))
            gain, error = max(gains)
        finally:
            fitting.put(start)
        found.append(max(0.0, gain))
        errors.append(error)
    return sum(found) / 2, max(errors)


def _places(
    evidence: Evidence, start: Tensor, gradient: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """List points from which to ascend: the parameters, and others where those may mislead."""
    places = [start]
    if evidence.count > PARAMETERS.newton_params:  # whose steps leave a saddle by themselves
        units, away = _own_units(evidence, generator), _signs(start, generator)
        places.append(
            start + PARAMETERS.away * away * (torch.ones_like(start) if units is None else units)
        )
    flat = gradient == 0
    if bool(flat.any()):
        size = 1 + start.abs()
        places += [torch.where(flat, start + shift * size, start) for shift in PARAMETERS.shifts]
    return places


def _gain(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Rise of the log evidence on the same draws, and its standard error (delta method)."""
    gain = float(torch.logsumexp(after, 0) - torch.logsumexp(before, 0))
    if not math.isfinite(gain):
        return -math.inf, 0.0
    apart = torch.softmax(after, 0) - torch.softmax(before, 0)
    return gain, float(apart.square().sum().sqrt())


def _flat(parts: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(leaf) if part is None else part).reshape(-1).double()
            for part, leaf in zip(parts, leaves)
        ]
    )
