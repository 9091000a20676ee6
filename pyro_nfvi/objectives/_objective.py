"""The contract of objectives, and what an estimate holds."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._typing import Noise, Particles, PerParticle, Scalar, TensorDict
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._schedules import Schedule

#: The approximation q.
Approximation: TypeAlias = FlowDensity | NoiseDensity
#: ``z (S, D) -> log p(z) (S,)`` in nats, up to a constant.
LogDensity: TypeAlias = Callable[[Tensor], Tensor]
#: Name of the stream of weights among the inputs of a step.
_STREAM = "objective.weight"


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

    surrogate: Scalar
    bound: Scalar
    log_w: PerParticle

    @property
    def num_bad(self) -> Tensor:
        """Particles that were left out (a tensor, so that reading it is a choice)."""
        return (~torch.isfinite(self.log_w)).sum()


class Objective(ABC):
    """Estimates a bound on the log evidence and its gradient from base noise.

    An objective of your own defines :meth:`estimate`, in which :meth:`score` gives the gradient of
    the log density without touching the flow's graph. Where the bound is a mean of independent
    terms of ``group`` particles, set ``group``; with more than one particle in a term, define
    :meth:`terms` too: fits are then compared by the bound instead of the ELBO. One that changes
    from step to step sets ``schedule`` and reads ``weight``. A plain function with the arguments of
    :meth:`estimate` is an objective as well.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> from pyro_nfvi.objectives import Estimate, Objective
        >>> class Plain(Objective):
        ...     name, group = "plain", 1
        ...     def estimate(self, density, log_density, eps, params=()):
        ...         z, log_q = density.push(eps)
        ...         log_w = log_density(z) - log_q
        ...         return Estimate(-log_w.mean(), log_w.mean().detach(), log_w.detach())
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> Plain()(density, target, density.sample_base(16)).log_w.shape
        torch.Size([16])
    """

    #: What a fit's report calls it.
    name: str = "objective"
    #: Particles of one independent term of the bound: 1 for the ELBO, K for a bound of K draws.
    #: None where the bound is no mean of such terms, or is not known from the weights.
    group: int | None = None
    #: Weight that changes from step to step: an input of the engine, not a part of what is
    #: compiled. Nothing is judged as converged before it has settled.
    schedule: Schedule | None = None
    _weight: Tensor | None = None

    @abstractmethod
    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
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

    def terms(self, log_w: PerParticle) -> Tensor:
        """Return independent numbers, in nats, whose mean is the bound, from log weights (S,).

        The weights themselves here, whose mean is the ELBO.
        """
        return log_w

    @property
    def weight(self) -> Tensor | float:
        """The number of ``schedule`` at the present step; outside of a fit the last one."""
        if self._weight is not None:
            return self._weight
        return 1.0 if self.schedule is None else self.schedule(self.schedule.settled)

    # ------------------------------------------------- derived, for the training loop and engine

    @property
    def additive(self) -> bool:
        """True for a mean over single particles, which may be estimated in parts."""
        return self.group == 1

    @property
    def from_weights(self) -> bool:
        """True if the bound is the mean of :meth:`terms`, so that it needs no gradient."""
        return self.group is not None

    @property
    def settled(self) -> int:
        """Step from which on the weight stays as it is."""
        return 0 if self.schedule is None else self.schedule.settled

    def check(self, num_particles: int) -> None:
        """Raise an :class:`OptionError` where so many particles cannot be used."""
        if self.group is not None and num_particles % self.group:
            raise OptionError(
                f"The objective {self.name} takes particles by {self.group}: num_particles is to "
                f"be a multiple; got {num_particles}."
            )

    def stream(self, first: int, count: int) -> TensorDict:
        """Return what changes in steps from ``first`` on, ``(count,)``: the weights, if any."""
        if self.schedule is None:
            return {}
        weights = [self.schedule(step) for step in range(first, first + count)]
        return {_STREAM: torch.tensor(weights, dtype=torch.float64)}

    def at(self, numbers: Mapping[str, Tensor]) -> Objective:
        """Return the objective of one step, with that step's numbers of :meth:`stream`."""
        if self.schedule is None:
            return self
        made = copy.copy(self)
        made._weight = numbers[_STREAM]
        return made

    def __call__(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        """Same as :meth:`estimate`."""
        return self.estimate(density, log_density, eps, params)

    @staticmethod
    def score(
        log_density: LogDensity,
        z: Particles,
        params: Sequence[Tensor] = (),
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[PerParticle, Particles, list[Tensor]]:
        r"""Return ``log p(z)``, :math:`\nabla_z \log p(z)`, and its sum's gradient in ``params``.

        All three without a graph; see ``pyro_nfvi._chain_rule.score``. A particle whose gradient
        is NaN stays alone with it.
        """
        return score(log_density, z, params, weigh)
