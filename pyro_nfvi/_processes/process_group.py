"""Several processes as one: sums and gradients over all of them, started by torchrun."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_nfvi._processes.launcher import Place, place_among_processes
from pyro_nfvi.errors import OptionError

#: What torchrun sets.
_VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, and which of them this one is.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Tell whether this process writes files and prints."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's rows of ``count``: neighbouring ones, sizes differ by one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all rows of all processes."""
        total = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
        total = self.sum(total)
        return total[0] / total[1]

    def sum_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over the processes, in one message.

        A parameter without a gradient in any process keeps none: an optimiser passes it over then,
        as it does in one process, where a gradient of zero would count as a step.
        """
        if self.size == 1:
            return
        leaves = list(params)
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        there = grads[0].new_tensor([float(leaf.grad is not None) for leaf in leaves])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), there])
        dist.all_reduce(flat)
        sizes = [leaf.numel() for leaf in leaves]
        *parts, there = flat.split([*sizes, len(leaves)])
        for leaf, part, found in zip(leaves, parts, there.tolist(), strict=True):
            leaf.grad = part.view_as(leaf).clone() if found else None

    def average_changes(
        self, tensors: Sequence[Tensor], before: Sequence[Tensor], share: float
    ) -> None:
        """Give every process the mean change of tensors that each has changed for itself.

        Running statistics: each process has seen its own images. What did not change stays exactly
        as it is; whole numbers are the leader's.

        Args:
            tensors: The tensors, changed in place.
            before: What they were.
            share: This process's share of the images.
        """
        if self.size == 1 or not tensors:
            return
        real = [(new, old) for new, old in zip(tensors, before) if new.is_floating_point()]
        if real:
            changes = [(new - old).double().reshape(-1) * share for new, old in real]
            total = self.sum(torch.cat(changes)).split([new.numel() for new, _ in real])
            for (new, old), change in zip(real, total):
                new.copy_((old.double() + change.view_as(old)).to(new))
        for new in tensors:
            if not new.is_floating_point():
                dist.broadcast(new, 0)

    def share(self, module: nn.Module) -> None:
        """Give every process the leader's parameters and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Tell whether the flag holds in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)) > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def meet(size: int, backend: str, start: str, timeout: timedelta | None = None) -> None:
    """Join the processes that torchrun started.

    Args:
        size: Number of processes.
        backend: ``"gloo"`` or ``"nccl"``.
        start: How the program is started, for the message.
        timeout: Longest wait of one operation; None for torch's own.

    Raises:
        OptionError: They cannot meet.
    """
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0].rstrip(".")
        raise OptionError(
            f"WORLD_SIZE is {size}, and the processes cannot meet: {told}. Start them with "
            f"torchrun --nproc-per-node {size} {start}, or unset WORLD_SIZE for one process."
        ) from error


def join_processes(timeout: timedelta) -> tuple[Place, Any] | None:
    """Join the processes that torchrun started, by gloo; None where this one is alone.

    They stay joined for later calls. A group that the program has joined already is left as it is.

    Args:
        timeout: Longest wait of one operation.

    Raises:
        OptionError: They cannot meet.
    """
    if any(not os.environ.get(name) for name in _VARIABLES):
        return None
    place = place_among_processes()
    return None if place.size == 1 else (place, _group(os.getpid(), place.size, timeout))


def writes_files() -> bool:
    """Tell whether this process writes: alone, or the first of those that were joined."""
    return not _group.cache_info().currsize or place_among_processes().rank == 0


@functools.lru_cache(maxsize=1)
def _group(pid: int, size: int, timeout: timedelta) -> Any:
    del pid  # a fork has joined nobody
    if not dist.is_initialized():
        meet(size, "gloo", "script.py", timeout)
        atexit.register(_leave)
    return dist.new_group(backend="gloo", timeout=timeout)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def joined() -> bool:
    """Tell whether this process has joined others, by this package or by the program."""
    return dist.is_available() and dist.is_initialized()


def leave_group(team: ProcessGroup) -> None:
    """Leave the processes."""
    if team.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
