"""The processes of a training run, and the device of each."""

from __future__ import annotations

import torch

from pyro_nfvi._processes.launcher import place_among_processes
from pyro_nfvi._processes.process_group import ProcessGroup, joined, meet
from pyro_nfvi.errors import OptionError


def join_group(device: str = "auto") -> ProcessGroup:
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
    if size > 1 and not joined():
        meet(size, "nccl" if where.type == "cuda" else "gloo", "-m pyro_nfvi.vae.train ...")
    return ProcessGroup(place.rank, size, where)
