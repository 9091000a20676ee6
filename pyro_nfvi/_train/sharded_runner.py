"""The runner of steps that several processes take together, and the others' part in it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._error_text import first_line
from pyro_nfvi._processes.exchange import Exchange
from pyro_nfvi._processes.row_service import RowService, interrupts_noted
from pyro_nfvi._train.sharded_steps import ShardedSteps, ShardState
from pyro_nfvi.errors import NFVIError


class Kept:
    """A state that each process keeps its own part of, by a number."""

    def __init__(self, number: int) -> None:
        self.number = number


class ShardedRunner:
    """A :class:`pyro_nfvi._engine.program.SnapshotRunner` over several processes, in the first one.

    It tells the others each thing before it does it too. States stay where they are: of the tables
    each process keeps its own rows.

    Args:
        make: Builds this process's part from what all are told at the begin.
        begin: What they are told.
        service: Lets the others do something as well: :meth:`ShardedFollower.__call__` there.
        live: The live leaves and the optimiser, which others may change between two blocks.

    Raises:
        NFVIError: Another process cannot take part.
    """

    def __init__(
        self,
        make: Callable[[Any], ShardedSteps],
        begin: Any,
        service: RowService,
        live: Callable[[], Iterator[Tensor]],
    ) -> None:
        self._tell, self._live = service.call, live
        self._own = ShardedFollower(make, service.exchange)
        self._tell(("begin", [], begin))
        self.steps = self._own.begin(begin)
        self._numbers = itertools.count()
        self._dropped: list[int] = []
        self._seen: list[tuple[int, int]] | None = None

    def _all(self, name: str, *given: Any) -> Any:
        dropped, self._dropped[:] = list(self._dropped), []
        order = (name, dropped, *given)
        self._tell(order)
        return self._own(order)

    def run(self, eps: Tensor, streams: Mapping[str, Tensor], rates: Tensor) -> BlockResult:
        """Take steps; see :class:`pyro_nfvi._engine.program.Runner`."""
        with interrupts_noted() as came:
            dropped, self._dropped[:] = list(self._dropped), []
            self._tell(("run", dropped, eps.cpu(), {n: x.cpu() for n, x in streams.items()}, rates))
            self._own(("drop", dropped))
            result = self.steps.run(eps, streams, rates, lambda: bool(came))
        self._seen = None
        if came and not len(result.bounds):
            raise KeyboardInterrupt
        return result

    def push(self) -> None:
        """Give the live leaves and the optimiser's state to all processes, if they are others."""
        if self._seen is None or self._seen != self._marks():
            self._all("push")
            self._seen = self._marks()

    def pull(self) -> None:
        """Collect the state of all processes in the live leaves and the optimiser."""
        self._all("pull")
        self._seen = self._marks()

    def snapshot(self) -> Kept:
        """Copy everything that steps change, for :meth:`restore`."""
        kept = Kept(next(self._numbers))
        weakref.finalize(kept, self._dropped.append, kept.number)
        self._all("take", kept.number)
        return kept

    def restore(self, saved: Kept) -> None:
        """Go back to a snapshot."""
        self._all("restore", saved.number)
        self._seen = None

    def end(self) -> None:
        """Let the others forget all of it."""
        self._tell(("end", []))

    def _marks(self) -> list[tuple[int, int]]:
        """Return what tells whether somebody wrote into a live tensor."""
        return [(id(tensor), tensor._version) for tensor in self._live()]


class ShardedFollower:
    """The part that a process which does not lead has in a :class:`ShardedRunner`.

    Args:
        make: Builds this process's steps from what the first one says at the begin.
        exchange: The processes.
    """

    def __init__(self, make: Callable[[Any], ShardedSteps], exchange: Exchange) -> None:
        self._make, self._exchange = make, exchange
        self._steps: ShardedSteps | None = None
        self._kept: dict[int, ShardState] = {}

    def __call__(self, order: Any) -> None:
        """Do what the first process does too."""
        name, dropped, *given = order
        for number in dropped:
            self._kept.pop(number, None)
        if name == "begin":
            with suppress(Exception):  # the first process has been told
                self.begin(given[0])
            return
        if name == "end":
            self._steps, self._kept = None, {}
            return
        steps = self._steps
        assert steps is not None
        if name == "run":
            eps, streams, rates = given
            like = steps.like
            with suppress(Exception):  # all know of it, and the first process decides
                steps.run(eps.to(like), {n: x.to(like.device) for n, x in streams.items()}, rates)
        elif name == "push":
            steps.push()
        elif name == "pull":
            steps.pull()
        elif name == "take":
            self._kept[given[0]] = steps.take()
        elif name == "restore":
            steps.restore(self._kept[given[0]])

    def begin(self, told: Any) -> ShardedSteps:
        """Build this process's steps, if all processes can.

        Raises:
            NFVIError: Another process cannot.
        """
        error, self._steps = None, None
        try:
            self._steps = self._make(told)
        except Exception as raised:
            error = raised
        texts = self._exchange.all(None if error is None else first_line(error))
        if error is not None:
            raise error
        for rank, text in enumerate(texts):
            if text is not None:
                raise NFVIError(f"Process {rank} cannot take part in the training: {text}")
        assert self._steps is not None
        return self._steps


def live_tensors(
    leaves: list[Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], Iterator[Tensor]]:
    """Return what goes through leaves and their optimiser's state."""

    def through() -> Iterator[Tensor]:
        yield from leaves
        for leaf in leaves:
            state = optimizer.state.get(leaf, {})
            yield from (value for value in state.values() if isinstance(value, Tensor))

    return through
