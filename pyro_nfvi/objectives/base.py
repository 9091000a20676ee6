"""The contract of objectives, and what an estimate holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_nfvi.density import FlowDensity

__all__ = ["Estimate", "LogDensity", "Objective"]

#: ``z (S, D) -> log p(z) (S,)`` in nats, up to a constant.
LogDensity: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """One Monte Carlo estimate of an objective: two names for two numbers.

    Attributes:
        surrogate: Scalar to differentiate and minimise. Its gradient is what counts; its value
            need not mean anything.
        bound: Scalar to report, in nats, without a graph: the objective over the particles
            that count.
        log_w: Log importance weight of every particle ``(S,)``, without a graph; NaN where the
            density or its gradient was not finite, so that the particle was left out.
    """

    surrogate: Tensor
    bound: Tensor
    log_w: Tensor

    @property
    def num_bad(self) -> Tensor:
        """Particles that were left out (a tensor, so that reading it is a choice)."""
        return (~torch.isfinite(self.log_w)).sum()


class Objective(ABC):
    """Estimates a bound on the log evidence and its gradient from base noise.

    An objective of your own defines ``estimate`` and ``name``, and uses :meth:`score` to get the
    gradient of the log density without touching the flow's graph.
    """

    #: What a fit's report calls it.
    name: str = "objective"
    #: Whether it is a mean over particles, which may then be estimated in parts.
    additive: bool = False

    @abstractmethod
    def estimate(
        self,
        density: FlowDensity,
        log_density: LogDensity,
        eps: Tensor,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        """Estimate from noise ``eps (S, D)``.

        Args:
            density: The approximation q.
            log_density: The target's log density, up to a constant.
            eps: Base noise, one row per particle.
            params: Leaves inside ``log_density`` that are to be trained too.
        """

    def __call__(
        self,
        density: FlowDensity,
        log_density: LogDensity,
        eps: Tensor,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        """Same as :meth:`estimate`."""
        return self.estimate(density, log_density, eps, params)

    @staticmethod
    def score(
        log_density: LogDensity, z: Tensor, params: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        r"""Return ``log p(z)``, :math:`\nabla_z \log p(z)`, and its sum's gradient in ``params``.

        All three without a graph. One forward and one backward pass of the model; a particle
        whose gradient is NaN stays alone with it.
        """
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            log_p = log_density(point)
            inputs = [point, *params]
            if not log_p.requires_grad:
                found: Sequence[Tensor | None] = [None] * len(inputs)
            else:
                found = torch.autograd.grad(log_p.sum(), inputs, allow_unused=True)
        grads = [
            torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(inputs, found)
        ]
        return log_p.detach(), grads[0].detach(), [grad.detach() for grad in grads[1:]]
