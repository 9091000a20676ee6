"""The contract of objectives, and what an estimate holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.distributions._flow_density import FlowDensity

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
    gradient of the log density without touching the flow's graph. One whose bound is not the mean
    of the log weights says in :meth:`terms` what it is the mean of; one that changes from step to
    step says in ``streams``, :meth:`stream` and :meth:`at` by which numbers.
    """

    #: What a fit's report calls it.
    name: str = "objective"
    #: Whether it is a mean over particles, which may then be estimated in parts.
    additive: bool = False
    #: Whether the bound is the mean of :meth:`terms`, so that it can be had without a gradient.
    from_weights: bool = False
    #: Names of the numbers that change from step to step, beside the noise.
    streams: tuple[str, ...] = ()
    #: Step from which on they stay as they are: nothing is judged as converged before.
    settled: int = 0

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def check(self, num_particles: int) -> None:  # noqa: B027 - most take any number
        """Raise an :class:`OptionError` where so many particles cannot be used."""

    def terms(self, log_w: Tensor) -> Tensor:
        """Return independent numbers, in nats, whose mean is the bound, from log weights (S,).

        The weights themselves here, whose mean is the ELBO.
        """
        return log_w

    def stream(self, first: int, count: int) -> TensorDict:
        """Return the numbers of ``streams`` for steps from ``first`` on: ``(count, ...)`` each."""
        return {}

    def at(self, numbers: Mapping[str, Tensor]) -> Objective:
        """Return the objective of one step, with that step's numbers."""
        return self

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
        log_density: LogDensity,
        z: Tensor,
        params: Sequence[Tensor] = (),
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        r"""Return ``log p(z)``, :math:`\nabla_z \log p(z)`, and its sum's gradient in ``params``.

        All three without a graph; see ``pyro_nfvi._chain_rule.score``. A particle whose gradient
        is NaN stays alone with it.
        """
        return score(log_density, z, params, weigh)
