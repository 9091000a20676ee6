"""Steps of a fit that several processes take together, each with some particles and some rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._engine.graph_runner import StepResult
from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._error_text import first_line
from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._processes.exchange import Exchange
from pyro_nfvi._train.part_gradient import CapturedPart, PartSum, part_gradient
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi._train.table_shards import Rows, TableShard
from pyro_nfvi.errors import NFVIError


@dataclass(frozen=True)
class ShardState:
    """The state of one process: values and optimiser of whole leaves, and own rows."""

    dense: list[Tensor]
    optimizer: list[dict[str, Any]]
    rows: list[Rows]


class ShardedSteps:
    r"""One process of those that take steps together; the others do the same at the same time.

    The particles of a step are divided. Gradients are summed over the processes in double
    precision, so that all get the same bits; then each moves what the step sees whole, and of the
    tables the rows that it owns:

    .. math:: g = \frac{\sum_p n_p g_p}{\sum_p n_p}

    with :math:`n_p` particles that count in process p. The rows of a mini-batch are asked of
    their owners before each step. A step is skipped by the rule of
    :class:`~pyro_nfvi._train.step.EagerStep`, on the sums, and so in all processes.

    Args:
        step: The step, with its live optimiser.
        num_particles: Particles of a step, of all processes together.
        exchange: The processes.
        engine: ``"auto"``, ``"compiled"`` or ``"eager"``.
        max_steps: Most steps of the fit.

    Cost:
        Two sums over the processes a step: of the rows of a mini-batch, and of the gradient.
    """

    def __init__(
        self,
        step: EagerStep,
        num_particles: int,
        exchange: Exchange,
        *,
        engine: str,
        max_steps: int,
    ) -> None:
        self._step, self._exchange = step, exchange
        self._span = slice(*exchange.span(num_particles))
        joint = step.log_joint
        rows = {name: torch.arange(count) for name, (_, count) in joint.subsampled.items()}
        by_rows = isinstance(step.optimizer, RowwiseAdam)
        self._gathered = step.guide.gathered(rows) if by_rows else None
        tables = () if self._gathered is None else self._gathered.trained
        self._tables = [one.table for one in tables]
        self._blocks = [one.block for one in tables]
        sharded = {id(table) for table in self._tables}
        self._dense = [leaf for leaf in step.params if id(leaf) not in sharded]
        self._shards = [TableShard(table, exchange) for table in self._tables]
        self._optimizer = self._own_optimizer()
        with torch.no_grad():
            eps = step.guide.density_at(rows).sample_base(num_particles)
        self._like = eps.new_empty(0)
        numbers = step.objective.stream(step.objective.settled // 2, 1)
        streams = rows | {name: value[0].to(eps.device) for name, value in numbers.items()}
        self._gradient, self.reason = part_gradient(
            step, self._gathered, self._dense, engine, max_steps, eps[self._span], streams
        )

    @property
    def captured(self) -> bool:
        """Tell whether this process runs a captured step."""
        return isinstance(self._gradient, CapturedPart)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and the place of all inputs."""
        return self._like

    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser like the live one, of own rows in place of whole tables."""
        if not self._shards:
            return self._step.optimizer
        own = {id(table): shard.own for table, shard in zip(self._tables, self._shards)}
        live = self._step.optimizer
        groups = [
            {**group, "params": [own.get(id(leaf), leaf) for leaf in group["params"]]}
            for group in live.param_groups
        ]
        return RowwiseAdam(groups)

    # ------------------------------------------------------------------------------- steps

    def run(
        self,
        eps: Tensor,
        streams: Mapping[str, Tensor],
        rates: Tensor,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> BlockResult:
        """Take steps; see :class:`pyro_nfvi._engine.program.Runner`.

        Args:
            eps: Noise of all particles ``(n, P, D)``.
            streams: The other inputs.
            rates: Learning rates.
            interrupted: Asked in the first process after each step; True ends the block in all.

        Raises:
            NFVIError: Another process failed in a step.
            ProcessLost: A process is gone.
        """
        results: list[StepResult] = []
        stopped = False
        for place in range(len(eps)):
            for group, rate in zip(self._optimizer.param_groups, rates[place].tolist()):
                group["lr"] = rate
            now = {name: value[place] for name, value in streams.items()}
            result, stopped = self._one(eps[place], now, stop=interrupted())
            results.append(result)
            if stopped or not result.ok:
                break
        return BlockResult(
            torch.tensor([one.bound for one in results], dtype=torch.float64),
            torch.tensor([one.num_bad for one in results]),
            torch.tensor([one.ok for one in results]),
            stopped,
        )

    def _one(
        self, eps: Tensor, streams: Mapping[str, Tensor], *, stop: bool
    ) -> tuple[StepResult, bool]:
        rows, numbers = self._rows(streams)
        part, error = PartSum((), 0.0, 0), None
        try:
            if len(own := eps[self._span]):
                part = self._gradient(own, streams, rows)
        except Exception as raised:  # of a model, in any way: all processes have to know
            error = raised
        flags = [float(part.good), part.bound, float(error is not None), float(stop)]
        gradients, (good, bound, failed, stopped) = self._summed(part, rows, flags)
        if failed:
            self._fail(error)
        bad, bound = len(eps) - round(good), bound / good if good else float("nan")
        result = StepResult(bound, bad, ok=False)
        if 2 * bad > len(eps):
            return result, bool(stopped)
        # Rows of tables are leaves of their own until the gradient is clipped.
        leaves = [*self._dense, *rows]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = None if gradient is None else (gradient / good).to(leaf)
        if not clip_gradient(leaves, TRAINING.clip_norm):
            return result, bool(stopped)
        for shard, block, row in zip(self._shards, self._blocks, rows):
            shard.own.grad = None
            if row.grad is not None:
                shard.set_gradient(numbers[block], row.grad)
        self._optimizer.step()
        for leaf in (*self._dense, *(shard.own for shard in self._shards)):
            leaf.grad = None
        return StepResult(bound, bad, ok=True), bool(stopped)

    def _rows(self, streams: Mapping[str, Tensor]) -> tuple[list[Tensor], Mapping[str, Tensor]]:
        """Ask the owners of a mini-batch's rows for them."""
        if self._gathered is None or not self._shards:
            return [], {}
        numbers = self._gathered.numbers(streams)
        parts = [
            shard.part(numbers[block].to(shard.own.device))
            for shard, block in zip(self._shards, self._blocks)
        ]
        flat = torch.cat([part.reshape(-1) for part in parts]).cpu()
        found = self._exchange.sum(flat).split([part.numel() for part in parts])
        rows = [
            one.reshape(part.shape).to(part).requires_grad_() for one, part in zip(found, parts)
        ]
        return rows, {name: one.to(rows[0].device) for name, one in numbers.items()}

    def _summed(
        self, part: PartSum, rows: Sequence[Tensor], flags: Sequence[float]
    ) -> tuple[list[Tensor | None], list[float]]:
        """Sum gradients and numbers over the processes.

        A gradient that is there in no process is None: an optimiser passes its leaf over.
        """
        leaves = [*self._dense, *rows]
        mine = part.gradients or [None] * len(leaves)
        there = [float(one is not None) for one in mine]
        head = torch.tensor([*flags, *there], dtype=torch.float64)
        flat = torch.cat(
            [
                head,
                *(
                    head.new_zeros(leaf.numel()) if one is None else one.double().cpu().reshape(-1)
                    for one, leaf in zip(mine, leaves)
                ),
            ]
        )
        self._exchange.sum(flat)
        head, *parts = flat.split([len(head), *(leaf.numel() for leaf in leaves)])
        told = head.tolist()
        found = [
            one.reshape(leaf.shape).to(leaf.device) if count else None
            for one, leaf, count in zip(parts, leaves, told[len(flags) :])
        ]
        return found, told[: len(flags)]

    def _fail(self, error: Exception | None) -> None:
        texts = self._exchange.all(None if error is None else first_line(error))
        if error is not None:
            raise error
        rank, text = next((i, text) for i, text in enumerate(texts) if text is not None)
        raise NFVIError(f"Process {rank} failed in a step of training: {text}")

    # ------------------------------------------------------------------------------- states

    def take(self) -> ShardState:
        """Copy what steps change here."""
        state = self._optimizer.state
        return ShardState(
            [leaf.detach().clone() for leaf in self._dense],
            [copy.deepcopy(dict(state.get(leaf, {}))) for leaf in self._dense],
            [shard.take(state[shard.own]) for shard in self._shards],
        )

    def restore(self, saved: ShardState) -> None:
        """Go back to a state of this process."""
        self._put_dense(saved.dense, saved.optimizer)
        for shard, rows in zip(self._shards, saved.rows, strict=True):
            shard.restore(rows, self._optimizer.state[shard.own])

    def _put_dense(self, values: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
        with torch.no_grad():
            for leaf, value, state in zip(self._dense, values, states, strict=True):
                leaf.copy_(value)
                own = self._optimizer.state[leaf]
                own.clear()
                own.update(copy.deepcopy(state))

    def push(self) -> None:
        """Take the first process's live leaves and optimiser, in all processes."""
        live, leads = self._step.optimizer.state, self._exchange.leads
        told = None
        if leads:
            told = (
                [leaf.detach() for leaf in self._dense],
                [dict(live.get(leaf, {})) for leaf in self._dense],
            )
        values, states = self._exchange.from_first(told)
        self._put_dense(values, states)
        for shard, table in zip(self._shards, self._tables):
            cut = shard.cut(table, live[table]) if leads else None
            shard.put(self._exchange.to_each(cut), self._optimizer.state[shard.own])

    def pull(self) -> None:
        """Write the present state to the first process's live leaves and optimiser."""
        live, own = self._step.optimizer.state, self._optimizer.state
        news = self._exchange.to_first([shard.news(own[shard.own]) for shard in self._shards])
        if news is None or not self._shards:
            return
        for leaf in self._dense:
            live[leaf] = copy.deepcopy(dict(own.get(leaf, {})))
        for place, (shard, table) in enumerate(zip(self._shards, self._tables)):
            shard.write([each[place] for each in news], table, live[table])
