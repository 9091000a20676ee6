"""The gradient of a part of a step's particles, summed and not averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.program import Program, Unsupported, fixed_name
from pyro_nfvi._engine.rounding import tolerance_of
from pyro_nfvi._eval_mode import fit_pass
from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._train.engine_faults import attempt
from pyro_nfvi._train.recipe import ENGINE
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi.guides._gathered_rows import GatheredRows


@dataclass(frozen=True)
class PartSum:
    """Sums over some particles of a step that count.

    Attributes:
        gradients: Of the leaves that a step sees whole, then of the rows of tables; None for one
            that the loss does not reach.
        bound: Of the bound, in nats.
        good: Number of particles that count.
    """

    gradients: Sequence[Tensor | None]
    bound: float
    good: int


class PartGradient(Protocol):
    """Computes the sums of some particles."""

    def __call__(
        self, eps: Tensor, streams: Mapping[str, Tensor], rows: Sequence[Tensor]
    ) -> PartSum:
        """Return the sums.

        Args:
            eps: Noise of the particles ``(P, D)``, one at least.
            streams: Other inputs of the step.
            rows: The rows ``(R, k)`` of each table that trains.
        """


class EagerPart:
    """Model, flow, objective and backward pass in Python.

    Args:
        step: The step, whose optimiser is not used.
        gathered: Tables of which a step sees some rows, if there are any.
        dense: Leaves that a step sees whole.
    """

    def __init__(
        self, step: EagerStep, gathered: GatheredRows | None, dense: Sequence[Tensor]
    ) -> None:
        self._step, self._gathered, self._dense = step, gathered, dense

    def __call__(
        self, eps: Tensor, streams: Mapping[str, Tensor], rows: Sequence[Tensor]
    ) -> PartSum:
        step, gathered = self._step, self._gathered
        objective = step.objective.at(streams)
        leaves = [row.detach().requires_grad_() for row in rows]
        fixed = _fixed(gathered, streams)
        for leaf in self._dense:
            leaf.grad = None

        def log_density(z: Tensor) -> Tensor:
            return step.log_joint(z, streams)

        bound, good = 0.0, 0
        for part in eps.split(step.rows(len(eps))):
            with fit_pass(step.guide):
                if gathered is None:
                    density = step.guide.density_at(streams)
                else:
                    density = gathered.density(streams, [*leaves, *fixed])
                estimate = objective(density, log_density, part, step.model_params)
            count = len(part) - int(estimate.num_bad)
            if count:
                bound, good = bound + count * float(estimate.bound), good + count
                (estimate.surrogate * count).backward()
        found = [leaf.grad for leaf in (*self._dense, *leaves)]
        for leaf in self._dense:
            leaf.grad = None
        return PartSum(found, bound, good)


class CapturedPart:
    """The same as a captured graph, which PyTorch runs without Pyro and autograd.

    Args:
        program: The captured step of as many particles.
        dense: Leaves that a step sees whole.
        tables: Number of tables.
    """

    def __init__(self, program: Program, dense: Sequence[Tensor], tables: int) -> None:
        self._program, self._count = program, len(dense) + tables
        place = {id(leaf): i for i, leaf in enumerate(dense)}
        self._dense = [place[id(leaf)] for leaf in program.dense]
        gathered = program.gathered
        order = [] if gathered is None else [id(one.table) for one in gathered.trained]
        self._tables = [order.index(id(one.table)) for one in program.tables]
        self._rows = [len(dense) + i for i in self._tables]

    def __call__(
        self, eps: Tensor, streams: Mapping[str, Tensor], rows: Sequence[Tensor]
    ) -> PartSum:
        program = self._program
        with torch.no_grad():
            fixed = _fixed(program.gathered, streams)
            inputs = {**streams, **{fixed_name(i): value for i, value in enumerate(fixed)}}
            *gradients, bound, num_bad = program.graph(
                *(leaf.detach() for leaf in program.dense),
                *(rows[i] for i in self._tables),
                eps,
                *(inputs[name] for name in program.streams),
                *program.consts,
            )
        good = len(eps) - int(num_bad)
        found: list[Tensor | None] = [None] * self._count
        for i, gradient in zip([*self._dense, *self._rows], gradients, strict=True):
            found[i] = gradient * good
        return PartSum(found, good * float(bound) if good else 0.0, good)


def part_gradient(
    step: EagerStep,
    gathered: GatheredRows | None,
    dense: Sequence[Tensor],
    engine: str,
    max_steps: int,
    eps: Tensor,
    streams: Mapping[str, Tensor],
) -> tuple[PartGradient, str]:
    """Choose what computes the sums of this process's particles.

    Args:
        step: The step.
        gathered: Tables of which a step sees some rows, if there are any.
        dense: Leaves that a step sees whole.
        engine: ``"auto"``, ``"compiled"`` or ``"eager"``.
        max_steps: Most steps of the fit.
        eps: Example noise of this process's particles ``(P, D)``.
        streams: Examples of the other inputs.

    Returns:
        It, and in words why not another one.
    """
    eager = EagerPart(step, gathered, dense)
    if engine == "eager":
        return eager, "asked for"
    if isinstance(step.log_joint.model, BatchModel):
        return eager, "the data of each step come from a loader"
    if engine == "auto" and max_steps < ENGINE.capture_steps:
        return eager, f"a fit of fewer than {ENGINE.capture_steps} steps"
    if not len(eps) or step.rows(len(eps)) < len(eps):
        return eager, "there are more processes than particles, or the model is very large"
    numbers = {} if gathered is None else gathered.numbers(streams)
    rows = [] if gathered is None else [one.at(numbers) for one in gathered.trained]
    try:
        with attempt("capturing the step"):
            model = step.log_joint.eager
            program = capture(
                step.guide,
                model,
                step.objective,
                step.params,
                len(step.model_params),
                eps,
                streams,
            )
            captured = CapturedPart(program, dense, len(rows))
            same = _alike(captured(eps, streams, rows), eager(eps, streams, rows))
    except Unsupported as error:
        return eager, str(error).partition("\nTrace Shapes:")[0].rstrip()
    if not same:
        return eager, "the captured step differs from the model"
    return captured, "the step is captured"


def _fixed(gathered: GatheredRows | None, streams: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the rows of tables that stay."""
    if gathered is None or not gathered.fixed:
        return []
    numbers = gathered.numbers(streams)
    return [one.at(numbers) for one in gathered.fixed]


def _alike(one: PartSum, other: PartSum) -> bool:
    """Compare two sums of the same particles, up to rounding."""
    pairs = list(zip(one.gradients, other.gradients))
    if one.good != other.good or any((a is None) != (b is None) for a, b in pairs):
        return False
    found = [(a.double(), b.double()) for a, b in pairs if a is not None and b is not None]
    slack = tolerance_of([a for a in one.gradients if a is not None] or [torch.zeros(())])
    size = 1 + max((float(b.abs().max()) for _, b in found if b.numel()), default=0.0)
    return all(bool(((a - b).abs() <= slack * size).all()) for a, b in found)
