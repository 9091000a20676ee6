"""The part of a training's state in a checkpoint, written and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._optim.recovery import Recovery
from pyro_nfvi._optim.rollback import BestBlock
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._train.checkpoint import LoopState
from pyro_nfvi._train.training_state import History, TrainingState

#: Fields of the record of a training, beside the losses.
_HISTORY = tuple(one.name for one in dataclasses.fields(History) if one.name != "losses")


def saved_state(
    state: TrainingState, noise: tuple[Tensor, int], snapshots: Mapping[str, Snapshot]
) -> LoopState:
    """Return all that is needed to go on.

    Args:
        state: The state.
        noise: State of the source of noise, and steps used of its block.
        snapshots: The states of the parameters, by name.
    """
    rng, used = noise
    counts = {
        "bad_in_a_row": state.recovery.bad_in_a_row,
        "since_kept": state.recovery.since_snapshot,
        "noise_used": used,
    }
    losses = torch.tensor(state.history.losses, dtype=torch.float64)
    return LoopState(_numbers(state), counts, losses, rng, snapshots)


def restored_state(saved: LoopState, begun: TrainingState) -> TrainingState:
    """Return the state that a checkpoint holds, each value of the type that it has to be.

    Args:
        saved: What the file holds.
        begun: A state that has just begun, for the length of its schedule and for types.

    Raises:
        Malformed: A value is of another type, or of no name.
    """
    known = _numbers(begun)
    for key, value in saved.state.items():
        if key not in known or not _alike(known[key], value):
            raise Malformed(f"its state has {key[:40]!r}, which is {str(value)[:40]!r}")
    numbers = {**known, **saved.state}
    history = {name: numbers[name] for name in _HISTORY}
    return TrainingState(
        dataclasses.replace(begun.schedule, decay=_decay_of(numbers["decay"])),
        History(losses=[float(x) for x in saved.losses.tolist()], **history),
        Recovery(
            bad_in_a_row=saved.counts["bad_in_a_row"],
            since_snapshot=saved.counts["since_kept"],
            skipped=int(numbers["num_skipped"]),
            rate=float(numbers["rate"]),
            restores=list(numbers["restores"]),
        ),
        BestBlock(
            bound=float(numbers["best_block"]),
            spread=float(numbers["best_spread"]),
            low_steps=int(numbers["low_steps"]),
            retreats=list(numbers["retreats"]),
        ),
    )


def _numbers(state: TrainingState) -> dict[str, Any]:
    """Return the values that go on, by their names in a file."""
    history = {name: getattr(state.history, name) for name in _HISTORY}
    return history | {
        "num_skipped": state.recovery.skipped,
        "restores": state.recovery.restores,
        "rate": state.recovery.rate,
        "decay": state.schedule.decay,
        "best_block": state.best_block.bound,
        "best_spread": state.best_block.spread,
        "low_steps": state.best_block.low_steps,
        "retreats": state.best_block.retreats,
    }


def _decay_of(value: Any) -> tuple[int, float, int] | None:
    """Return the begin of the decay; JSON has lists only."""
    if value is None:
        return None
    begin, seconds, length = value
    return int(begin), float(seconds), int(length)


def _alike(known: object, value: object) -> bool:
    """Tell whether a value of a file is of the type that it has to be."""
    if known is None or value is None:
        return True
    numbers = isinstance(known, (int, float)) and isinstance(value, (int, float))
    return numbers or type(value) is type(known)
