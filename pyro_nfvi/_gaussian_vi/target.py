"""A log density with its gradient, in double precision whatever the model computes in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._chain_rule import score
from pyro_nfvi._gaussian_vi.recipe import TARGET
from pyro_nfvi._typing import TensorPair, TensorTriple


class ScoredDensity(Protocol):
    """A log density that brings its gradient, as a model's compiled log joint does."""

    def value_and_grad(self, z: Tensor, /) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``, without a graph.

        Rows are independent; one that cannot be scored has NaN or -inf.
        """


def scorer(
    log_density: Callable[[Tensor], Tensor] | ScoredDensity,
) -> Callable[[Tensor], TensorPair]:
    """Return a function from rows to log densities and gradients, by autograd where need be."""
    own: Callable[[Tensor], TensorPair] | None = getattr(log_density, "value_and_grad", None)
    if own is not None:
        return own
    assert callable(log_density)

    def by_autograd(rows: Tensor) -> TensorPair:
        log_p, gradient, _ = score(log_density, rows)
        return log_p, gradient

    return by_autograd


def _by_value(density: ScoredDensity) -> Callable[[Tensor], Tensor]:
    """Return a function of rows that is differentiable through a density's own gradient."""

    def log_density(z: Tensor) -> Tensor:
        log_p, gradient = density.value_and_grad(z.detach())
        # Zero, with that gradient.
        slope = (gradient * (z - z.detach())).sum(-1) if z.requires_grad else 0.0
        return log_p + slope

    return log_density


class Target:
    r"""A log density of row vectors, with gradients; rows that cannot be scored are marked.

    A density that raises for some row is called again in parts, so that the others count.

    The arithmetic of the Gaussians around it is in float64; the density is called in its own
    dtype.

    Args:
        log_density: ``(N, D) -> (N,)``, in nats, differentiable, rows independent; or a
            :class:`ScoredDensity`, which brings its gradient.
        like: Any tensor of the dtype and device that the density takes.
        budget: Time for all that is done with this target. What iterates stops, with what it has
            by then, where none is left.
        tick: Called with 1 after each evaluation of a batch, for a bar of progress.

    Cost:
        One forward and one backward pass of the density for each call.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> target = Target(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> log_p, score, ok = target(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
        >>> score[0].tolist(), ok.tolist()
        ([-1.0, -2.0], [True, False])
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor] | ScoredDensity,
        like: Tensor,
        *,
        budget: Budget = UNLIMITED,
        tick: Callable[[int], object] | None = None,
    ) -> None:
        self.budget, self.tick = budget, tick
        self._value_and_grad = scorer(log_density)
        #: The density as a differentiable function of rows.
        self.log_density = log_density if callable(log_density) else _by_value(log_density)
        self.dtype, self.device = like.dtype, like.device
        #: Rows evaluated so far, each with its gradient.
        self.num_rows = 0
        self._seconds = 0.0

    def __call__(self, z: Tensor) -> TensorTriple:
        """Evaluate ``z (*b, D)``: log density ``(*b,)``, score ``(*b, D)``, and which are finite.

        Rows that are not finite have score 0 and log density -inf.
        """
        rows = z.reshape(-1, z.shape[-1]).detach().to(self.dtype)
        begin = self.budget.clock()
        log_p, gradient = self._evaluate(rows, max(1, len(rows) // TARGET.pieces))
        self.num_rows += len(rows)
        self._seconds += self.budget.clock() - begin
        if math.isfinite(float(log_p.sum() + gradient.sum())):  # as a rule: one look at all numbers
            ok = torch.ones_like(log_p, dtype=torch.bool)
        else:
            ok = torch.isfinite(log_p) & torch.isfinite(gradient).all(-1)
            log_p = torch.where(ok, log_p, torch.full_like(log_p, -torch.inf))
            gradient = torch.where(ok.unsqueeze(-1), gradient, torch.zeros_like(gradient))
        batch = z.shape[:-1]
        if self.tick is not None:
            self.tick(1)
        return log_p.reshape(batch), gradient.reshape(z.shape), ok.reshape(batch)

    def affordable(self, rows: int, fewest: int = TARGET.fewest_rows) -> int:
        """Return ``rows``, or fewer where there is no time for so many at the pace until now."""
        pace = self._seconds / max(1, self.num_rows)
        if self.budget.affords(rows * pace):
            return rows
        return max(min(rows, fewest), int(self.budget.left() / pace))

    def log_prob(self, z: Tensor) -> Tensor | None:
        """Score many rows ``(N, D)``, in pieces where there may be no time for all of them.

        Returns:
            Log density ``(N,)``, -inf where it is not finite; None where the budget was spent
            before the last piece.
        """
        pace = self._seconds / max(1, self.num_rows)
        if self.budget.limit is None or (pace and self.budget.affords(4 * len(z) * pace)):
            return self(z)[0]
        parts: list[Tensor] = []
        done, rows = 0, TARGET.first_rows
        while done < len(z):
            if parts and self.budget.over():
                return None
            begin = self.budget.clock()
            parts.append(self(z[done : done + rows])[0])
            pace = max(1e-9, self.budget.clock() - begin) / len(parts[-1])
            done += rows
            rows = max(TARGET.first_rows, min(len(z), int(0.5 * self.budget.left() / pace)))
        return torch.cat(parts)

    def within(self, budget: Budget) -> Target:
        """Return the same target with another budget; rows are counted in each for itself."""
        other = copy.copy(self)
        other.budget, other.num_rows, other._seconds = budget, 0, 0.0
        return other

    def in_units(self, units: Tensor) -> Target:
        """Return the density of ``u`` where ``z = units * u``, as a target of such ``u``."""
        other, inner, plain = copy.copy(self), self._value_and_grad, self.log_density
        scale, shift = units.to(self.device, self.dtype), float(units.log().sum())

        def value_and_grad(u: Tensor) -> TensorPair:
            log_p, gradient = inner(scale * u)
            return log_p + shift, gradient * scale

        other._value_and_grad = value_and_grad
        other.log_density = lambda u: plain(scale * u) + shift
        return other

    def through(self, forward: Callable[[Tensor], TensorPair]) -> Target:
        """Return the density of ``u`` where ``z, ladj = forward(u)``, as a target of such ``u``.

        Args:
            forward: A differentiable map of rows, with its log-determinants.
        """
        other, inner, plain = copy.copy(self), self._value_and_grad, self.log_density

        def value_and_grad(rows: Tensor) -> TensorPair:
            with torch.enable_grad():
                u = rows.detach().double().requires_grad_()
                z, ladj = forward(u)
                log_p, gradient = inner(z.detach().to(rows.dtype))
                total = (z * gradient.detach().double()).sum() + ladj.sum()
            (pulled,) = torch.autograd.grad(total, u)
            return log_p.double() + ladj.detach(), pulled

        def log_density(u: Tensor) -> Tensor:
            z, ladj = forward(u.double())
            return plain(z.to(u.dtype)) + ladj

        other._value_and_grad = value_and_grad
        other.log_density = log_density
        return other

    def holding(self, index: Tensor, values: Tensor) -> Target:
        """Return the density of the other coordinates, in order, with those at ``index`` held."""
        other, inner, plain = copy.copy(self), self._value_and_grad, self.log_density

        def whole(rows: Tensor) -> Tensor:
            full = rows.new_zeros(len(rows), rows.shape[-1] + len(index))
            rest = torch.ones(full.shape[-1], dtype=torch.bool, device=rows.device)
            rest[index.to(rows.device)] = False
            place = rest.nonzero().squeeze(-1)
            full = full.index_copy(1, place, rows)
            held = values.to(rows).expand(len(rows), -1)
            return full.index_copy(1, index.to(rows.device), held)

        def value_and_grad(rows: Tensor) -> TensorPair:
            log_p, gradient = inner(whole(rows))
            rest = torch.ones(gradient.shape[-1], dtype=torch.bool, device=rows.device)
            rest[index.to(rows.device)] = False
            return log_p, gradient[:, rest]

        other._value_and_grad = value_and_grad
        other.log_density = lambda rows: plain(whole(rows))
        return other

    def _evaluate(self, rows: Tensor, smallest: int) -> TensorPair:
        """Log density and score; where the density raises, in halves, until it does not."""
        try:
            log_p, gradient = self._value_and_grad(rows)
            return log_p.double(), gradient.double()
        except (TypeError, NameError, AttributeError, ImportError):
            raise  # a mistake of the model's own code
        except Exception:  # one matrix without a Cholesky factor, say, or an integrator that fails
            if len(rows) <= smallest:
                bad = torch.full(rows.shape, torch.nan, dtype=torch.float64, device=rows.device)
                return bad[:, 0], bad
        halves = [self._evaluate(half, smallest) for half in rows.chunk(2)]
        return torch.cat([half[0] for half in halves]), torch.cat([half[1] for half in halves])
