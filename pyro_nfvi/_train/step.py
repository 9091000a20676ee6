"""One step of a fit, run by PyTorch as it stands: what all engines reproduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_nfvi._engine.graph_runner import StepResult, one_by_one
from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._eval_mode import fit_pass
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.objectives._objective import Objective


class EagerStep:
    """Model, flow, objective, backward pass and optimiser in Python; always works.

    The step is skipped when the gradient is not finite, or when more than half of the particles
    are bad.

    Args:
        guide: The guide, set up.
        log_joint: The model's log joint.
        objective: What is estimated.
        params: All leaves that are trained; those of the model come last.
        num_model_params: How many of them are the model's own.
        optimizer: Holds ``params``.
    """

    def __init__(
        self,
        guide: AutoFlow | PyroGuide,
        log_joint: LogJoint,
        objective: Objective,
        params: Sequence[Tensor],
        num_model_params: int,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.guide, self.log_joint, self.objective = guide, log_joint, objective
        self.params = list(params)
        self.model_params = self.params[len(self.params) - num_model_params :]
        self.optimizer = optimizer

    def __call__(self, eps: Tensor, streams: Mapping[str, Tensor]) -> StepResult:
        result = self.gradient(eps, streams)
        if not result.ok:
            return result
        if not clip_gradient(self.params, TRAINING.clip_norm):
            return StepResult(result.bound, result.num_bad, ok=False)
        self.optimizer.step()
        return result

    def gradient(self, eps: Tensor, streams: Mapping[str, Tensor]) -> StepResult:
        """Leave the gradient in the parameters; ``ok`` is False if it should not be used."""
        objective = self.objective.at(streams)

        def log_density(z: Tensor) -> Tensor:
            return self.log_joint(z, streams)

        self.optimizer.zero_grad(set_to_none=True)
        bound, num_bad = 0.0, 0
        for part in eps.split(self.rows(len(eps))):
            with fit_pass(self.guide):
                density = self.guide.density_at(streams)
                estimate = objective(density, log_density, part, self.model_params)
            share = len(part) / len(eps)
            bound += share * float(estimate.bound)
            num_bad += int(estimate.num_bad)
            if 2 * int(estimate.num_bad) > len(part):
                return StepResult(bound, num_bad, ok=False)
            (estimate.surrogate * share).backward()
        return StepResult(bound, num_bad, ok=True)

    def rows(self, count: int) -> int:
        """Return how many particles are run together: all, unless the model is very large."""
        if not self.objective.additive:
            return count
        return max(1, TRAINING.model_numbers // max(1, self.log_joint.size))


class EagerRunner:
    """Runs blocks of :class:`EagerStep` one by one, on the live parameters.

    Args:
        step: The step.
    """

    def __init__(self, step: EagerStep) -> None:
        self.step = step

    def run(self, eps: Tensor, streams: Mapping[str, Tensor], rates: Tensor) -> BlockResult:
        def one(place: int) -> StepResult:
            for group, rate in zip(self.step.optimizer.param_groups, rates[place].tolist()):
                group["lr"] = rate
            return self.step(eps[place], {name: x[place] for name, x in streams.items()})

        return one_by_one(one, len(eps))

    def push(self) -> None:
        """Nothing to do: the parameters are the live ones."""

    def pull(self) -> None:
        """Nothing to do: the parameters are the live ones."""
