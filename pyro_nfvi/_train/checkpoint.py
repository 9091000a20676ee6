"""Checkpoints: a training goes on where it was, with the numbers it would have had."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi.errors import FileError

_KIND = "checkpoint"


@dataclass(frozen=True)
class LoopState:
    """All that a training needs to go on, as values.

    Attributes:
        state: Numbers and words by name, which JSON can hold.
        counts: Whole numbers by name.
        losses: Negative bound of every step ``(n,)``, float64.
        rng: State of the source of noise.
        snapshots: The states ``now`` and ``good``, and ``best`` and ``mean`` where there are any.
    """

    state: Mapping[str, Any]
    counts: Mapping[str, int]
    losses: Tensor
    rng: Tensor
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """The file of a training's state.

    Attributes:
        path: The file.
        every: Steps between two writes.
        resume: Go on from the file if it is there.
        identity: What has to be the same for a fit to go on: latent space, flow, options.
    """

    path: str | os.PathLike[str]
    every: int
    resume: bool
    identity: dict[str, Any]

    def due(self, step: int) -> bool:
        """Tell whether a write is due after ``step``."""
        return step % self.every == 0

    def save(self, state: LoopState) -> None:
        """Write the state of a training.

        Raises:
            FileError: The file cannot be written; an earlier one is as it was.
        """
        spec = {
            "identity": self.identity,
            "state": dict(state.state),
            "counts": dict(state.counts),
        }
        tensors = {
            "losses": state.losses,
            "rng": state.rng,
            "snapshots": {name: packed(one) for name, one in state.snapshots.items()},
        }
        write_file(self.path, _KIND, spec, tensors)

    def load(self, params: Sequence[Tensor]) -> LoopState | None:
        """Read the state of a training; None without a file, or where none is to be read.

        Args:
            params: The leaves that are trained, to compare with.

        Raises:
            FileError: The file is of another fit, or cannot be read.
        """
        if not self.resume or not os.path.exists(self.path):
            return None
        spec, tensors = read_file(self.path, _KIND, params[0].device)
        theirs = spec.get("identity")
        theirs = theirs if isinstance(theirs, dict) else {}
        different = [key for key in self.identity if self.identity[key] != theirs.get(key)]
        if different:
            key = different[0]
            raise FileError(
                f"The checkpoint {self.path} is of another fit: its {key} is "
                f"{str(theirs.get(key))[:200]}, not {self.identity[key]}. Remove the file, or pass "
                "resume=False."
            )
        with self.reading():
            return LoopState(
                spec["state"],
                {name: int(value) for name, value in spec["counts"].items()},
                tensors["losses"],
                tensors["rng"].cpu(),
                unpacked(tensors["snapshots"], params),
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make one error of all that a damaged description can lead to.

        Raises:
            FileError: Anything else was raised, which is the cause.
        """
        try:
            yield
        except Exception as error:  # descriptions can be wrong in every way there is
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
            raise FileError(
                f"The checkpoint {self.path} is damaged ({words}). Remove the file, or pass "
                "resume=False."
            ) from error


def packed(state: Snapshot) -> dict[str, Any]:
    """Return a snapshot as what a file can hold; :func:`unpacked` reads it."""
    return {"step": state.step, "values": list(state.values), "optimizer": state.optimizer}


def unpacked(held: Mapping[str, Any], params: Sequence[Tensor]) -> dict[str, Snapshot]:
    """Read snapshots, and compare their values with the parameters, which would be broadcast.

    Raises:
        Malformed: Values of another number, shape or type, or not finite.
    """
    shots = {}
    for name, one in held.items():
        values = tuple(one["values"])
        if [(v.shape, v.dtype) for v in values] != [(p.shape, p.dtype) for p in params]:
            raise Malformed(f"the values of {name!r} are not those of the parameters")
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise Malformed(f"the values of {name!r} are not finite")
        shots[name] = Snapshot(int(one["step"]), values, one["optimizer"])
    return shots
