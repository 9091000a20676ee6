"""Checkpoints: a fit goes on where it was, with the numbers it would have had."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._train.snapshot import Snapshot
from pyro_nfvi.errors import FileError
from pyro_nfvi.infer._file_checks import check_optimizer
from pyro_nfvi.infer._fit_files import read_file, write_file

if TYPE_CHECKING:
    from pyro_nfvi._train.loop import Loop


_KIND = "checkpoint"


def fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    """Tell data apart: tensors by their bytes, numbers and words by themselves, others by type.

    Cost:
        One pass over the data.
    """
    known = hashlib.sha256()
    leaves, structure = tree_flatten((args, dict(sorted(kwargs.items()))))
    known.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            held = leaf.detach().cpu().contiguous()
            known.update(f"{held.dtype} {tuple(held.shape)}".encode())
            known.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            plain = isinstance(leaf, (bool, int, float, str, bytes, type(None)))
            known.update(repr(leaf).encode() if plain else type(leaf).__name__.encode())
    return {"arguments": known.hexdigest()[:16]}


@dataclass(frozen=True)
class Checkpoint:
    """Where, how often, and of which fit.

    Attributes:
        path: The file.
        every: Steps between two writes.
        resume: Whether to go on from the file if it is there.
        identity: What has to be the same for a fit to go on: latent space, flow, options.
    """

    path: str | os.PathLike[str]
    every: int
    resume: bool
    identity: dict[str, Any]

    def due(self, step: int) -> bool:
        """Whether it is time to write."""
        return step % self.every == 0

    def save(self, loop: Loop) -> None:
        """Write the state of a loop."""
        state = dataclasses.asdict(loop.state)
        losses = torch.tensor(state.pop("losses"), dtype=torch.float64)
        rng, used = loop.noise.state()
        names = ("now", "good", "best", "mean")
        shots = (
            Snapshot.take(loop.state.step, loop.params, loop.optimizer),
            loop.good,
            loop.best,
            loop.mean,
        )
        tensors = {
            "losses": losses,
            "rng": rng,
            "snapshots": {
                name: {"step": s.step, "values": list(s.values), "optimizer": s.optimizer}
                for name, s in zip(names, shots, strict=True)
                if s is not None
            },
        }
        counts = {
            "bad_in_a_row": loop._bad_in_a_row,
            "since_kept": loop._since_kept,
            "noise_used": used,
        }
        spec = {"identity": self.identity, "state": state, "counts": counts}
        write_file(self.path, _KIND, spec, tensors)

    def load_into(self, loop: Loop) -> None:
        """Put a loop into the state of the file; without a file, start from the beginning.

        Raises:
            FileError: The file is of another fit, or cannot be read.
        """
        if not os.path.exists(self.path):
            return
        spec, tensors = read_file(self.path, _KIND, loop.params[0].device)
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
        try:
            shots = _snapshots(tensors["snapshots"], loop.params)
            _put_state(loop, spec["state"], tensors["losses"])
            shots["now"].put(loop.params, loop.optimizer)
            check_optimizer(loop.optimizer)
            loop.resume(shots["good"], shots.get("best"))
            loop.mean = shots.get("mean")
            counts = {name: int(value) for name, value in spec["counts"].items()}
            loop._bad_in_a_row = counts["bad_in_a_row"]
            loop._since_kept = counts["since_kept"]
            # Files of earlier versions hold the state after the last step's own numbers.
            loop.noise.restore(tensors["rng"].cpu(), counts.get("noise_used", 0))
        except Exception as error:  # descriptions can be wrong in every way there is
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
            raise FileError(
                f"The checkpoint {self.path} is damaged ({words}). Remove the file, or pass "
                "resume=False."
            ) from error


def _snapshots(held: Mapping[str, Any], params: Sequence[Tensor]) -> dict[str, Snapshot]:
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


def _put_state(loop: Loop, described: Mapping[str, Any], losses: Tensor) -> None:
    """Give a loop's state its values, each of the type that it has."""
    state = loop.state
    known = {one.name for one in dataclasses.fields(state)}
    for key, value in described.items():
        now = getattr(state, key, None)
        numbers = isinstance(now, (int, float)) and isinstance(value, (int, float))
        kept = now is None or value is None or numbers or type(value) is type(now)
        if key not in known or not kept:
            raise Malformed(f"its state has {key[:40]!r}, which is {str(value)[:40]!r}")
        setattr(state, key, value)
    if state.decay is not None:
        begin, seconds, length = state.decay  # JSON has lists only
        state.decay = (int(begin), float(seconds), int(length))
    state.losses = [float(value) for value in losses.tolist()]
    loop.schedule.decay = state.decay
