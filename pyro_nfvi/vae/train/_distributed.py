"""Several processes as one: gradients and sums over all of them, started by torchrun."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae.train._orphans import place_among_processes


@dataclass(frozen=True)
class Team:
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


def open_team(device: str = "auto") -> Team:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: ``"auto"`` takes a GPU where there is one.

    Raises:
        OptionError: A device that is not there, or processes that cannot meet.
    """
    place = place_among_processes()
    size = place.size
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise OptionError("--device cuda: torch finds no GPU. Take --device cpu.") from error
        words = str(error).splitlines()[0]
        raise OptionError(
            f"--device {device} cannot be used: {words} Take --device cpu."
        ) from error
    if where.type == "cuda":
        if size > 1 and place.local >= torch.cuda.device_count():
            raise OptionError(
                f"LOCAL_RANK is {place.local}, and there are {torch.cuda.device_count()} GPUs: "
                "each process needs one of its own. Start fewer processes, or take --device cpu."
            )
        where = torch.device("cuda", place.local if size > 1 else where.index or 0)
        torch.cuda.set_device(where)
    if size > 1:
        try:
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            told = str(error).splitlines()[0].rstrip(".")
            raise OptionError(
                f"WORLD_SIZE is {size}, and the processes cannot meet: {told}. Start them with "
                f"torchrun --nproc-per-node {size} -m pyro_nfvi.vae.train ..., or unset WORLD_SIZE "
                "for one process."
            ) from error
    return Team(place.rank, size, where)


def close_team(team: Team) -> None:
    """Leave the processes."""
    if team.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
