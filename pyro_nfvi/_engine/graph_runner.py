"""Blocks of steps that Python takes one by one, and the captured graph run that way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._engine.program import BlockResult, OptimizerSpec, Program
from pyro_nfvi._optim.gradient_clipping import clip_gradient


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        bound: The bound before the update, in nats.
        num_bad: Particles left out because their density or its gradient was not finite.
        ok: Whether the parameters were updated.
    """

    bound: float
    num_bad: int
    ok: bool


def one_by_one(step: Callable[[int], StepResult], count: int) -> BlockResult:
    """Take steps until one is skipped or Ctrl-C comes.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the first step was over.
    """
    bounds, num_bad, ok = [], [], []
    interrupted = False
    try:
        for place in range(count):
            result = step(place)
            bounds.append(result.bound)
            num_bad.append(result.num_bad)
            ok.append(result.ok)
            if not result.ok:
                break
    except KeyboardInterrupt:
        if not ok:
            raise
        interrupted = True
    done = len(ok)
    return BlockResult(
        torch.tensor(bounds[:done], dtype=torch.float64),
        torch.tensor(num_bad[:done]),
        torch.tensor(ok),
        interrupted,
    )


class GraphRunner:
    """Runs a captured graph with PyTorch's own operations and the torch optimiser.

    The same operations in the same order as the step that was captured, so the same numbers; what
    is saved is the time that Pyro, the flow and autograd spend in Python.

    Args:
        program: The captured step.
        spec: The optimiser.
        graph: Runs instead of the program's own graph: a compiled form of it.
    """

    def __init__(
        self,
        program: Program,
        spec: OptimizerSpec,
        graph: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.program, self.spec = program, spec
        self._graph = program.graph.forward if graph is None else graph

    def run(self, eps: Tensor, streams: Mapping[str, Tensor], rates: Tensor) -> BlockResult:
        program, optimizer = self.program, self.spec.optimizer
        params, names = program.held, list(program.streams)
        # They share memory with the parameters.
        values = [param.detach() for param in program.dense]
        streams, numbers = program.inputs(streams)
        optimizer.zero_grad(set_to_none=True)

        def one(place: int) -> StepResult:
            for group, rate in zip(optimizer.param_groups, rates[place].tolist()):
                group["lr"] = rate
            now = {block: index[place] for block, index in numbers.items()}
            *grads, bound, num_bad = self._graph(
                *values,
                *(table.at(now) for table in program.tables),
                eps[place],
                *(streams[name][place] for name in names),
                *program.consts,
            )
            bad = int(num_bad)
            if 2 * bad > len(eps[place]):
                return StepResult(float(bound), bad, ok=False)
            for param, grad in zip(program.dense, grads):
                # Fused optimisers read the memory as it lies, and so does autograd write it.
                same = grad.stride() == param.stride()
                param.grad = grad if same else torch.empty_like(param).copy_(grad)
            for table, grad in zip(program.tables, grads[len(values) :]):
                table.table.grad = table.gradient(now, grad)
            if not clip_gradient(params, self.spec.clip):
                return StepResult(float(bound), bad, ok=False)
            optimizer.step()
            return StepResult(float(bound), bad, ok=True)

        with torch.no_grad():
            return one_by_one(one, len(eps))

    def push(self) -> None:
        """Nothing to do: the parameters are the live ones."""

    def pull(self) -> None:
        """Nothing to do: the parameters are the live ones."""
