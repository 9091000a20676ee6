"""Learning rates of a run: those of any scheduler of torch, times a factor after bad steps."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_nfvi.errors import OptionError


class Rates:
    """The rates of an optimiser's groups, and the scheduler that moves them.

    The scheduler sees its own rates alone: the factor is there while the optimiser steps.

    Args:
        optimizer: The optimiser; every group keeps its own rate.
        scheduler: A scheduler of torch over it, or None.
        interval: ``"step"`` or ``"epoch"``: when the scheduler steps; None for what its class is
            made for, which is steps for ``OneCycleLR`` and ``CyclicLR`` and epochs for all others.

    Raises:
        OptionError: The scheduler is that of another optimiser.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: Any = None, interval: str | None = None
    ) -> None:
        if interval not in (None, "step", "epoch"):
            raise OptionError(f"scheduler_interval is 'step' or 'epoch'; got {interval!r}.")
        if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise OptionError(
                "The scheduler is that of another optimiser. Make it over the one that is passed, "
                "or pass a function: scheduler=lambda optimizer: StepLR(optimizer, 10)."
            )
        self.optimizer, self.scheduler = optimizer, scheduler
        self.judged = isinstance(scheduler, ReduceLROnPlateau)
        if self.judged and interval == "step":
            raise OptionError("ReduceLROnPlateau looks at validations, of which an epoch has one.")
        by_step = isinstance(scheduler, OneCycleLR | CyclicLR)
        self.interval = interval or ("step" if by_step else "epoch")
        #: Rates at the start of the run, one for each group.
        self.initial = [float(one.get("initial_lr", one["lr"])) for one in optimizer.param_groups]

    def now(self, factor: float = 1.0) -> list[float]:
        """Return the present rate of each group."""
        return [float(one["lr"]) * factor for one in self.optimizer.param_groups]

    def step(self, factor: float) -> None:
        """Take a step of the optimiser at the present rates times ``factor``."""
        groups = self.optimizer.param_groups
        held = [one["lr"] for one in groups]
        try:
            if factor != 1:
                for one in groups:
                    one["lr"] = one["lr"] * factor
            self.optimizer.step()
        finally:
            for one, rate in zip(groups, held, strict=True):
                one["lr"] = rate

    def after_step(self) -> None:
        """Move the rates at the end of a step, where that is the scheduler's interval."""
        if self.scheduler is not None and self.interval == "step":
            self._advance()

    def after_epoch(self, loss: float) -> None:
        """Move the rates at the end of an epoch, where that is the scheduler's interval.

        Args:
            loss: Negative ELBO of the validation images, for ``ReduceLROnPlateau``.
        """
        if self.scheduler is not None and self.interval == "epoch":
            self._advance(*([loss] if self.judged else []))

    def _advance(self, *given: float) -> None:
        with warnings.catch_warnings():
            # Steps without a finite gradient are no steps of the optimiser, and may come first.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step(*given)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the groups' options while an earlier state of the optimiser comes back."""
        held = [
            {name: value for name, value in one.items() if name != "params"}
            for one in self.optimizer.param_groups
        ]
        yield
        for one, options in zip(self.optimizer.param_groups, held, strict=True):
            one.update(options)

    def state(self) -> dict[str, Any]:
        """Return the scheduler's state as a file can hold it."""
        return {} if self.scheduler is None else _held(self.scheduler.state_dict())

    def load(self, state: Mapping[str, Any]) -> None:
        """Put the scheduler into a state that :meth:`state` returned."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(_restored(self.scheduler.state_dict(), dict(state)))

    def catch_up(self, steps: int) -> None:
        """Bring a scheduler by step, whose state no file holds, to the rates after ``steps``."""
        for one, rate in zip(self.optimizer.param_groups, self.initial, strict=True):
            one["lr"] = rate
        if self.scheduler is not None and self.interval == "step" and steps:
            self.scheduler.last_epoch = steps - 1
            self._advance()

    def rebase(self, began: Sequence[float], initial: Sequence[float]) -> None:
        """Go on at other rates: each group's changes by the ratio of the initial ones.

        Args:
            began: Initial rates of the state that was read.
            initial: Those to go on with.
        """
        ratios = [new / old if old else 1.0 for old, new in zip(began, initial, strict=True)]
        for one, ratio in zip(self.optimizer.param_groups, ratios, strict=True):
            for name in {"lr", "initial_lr", "max_lr", "min_lr"} & set(one):
                one[name] = one[name] * ratio
        _scale(self.scheduler, ratios)


def _scale(scheduler: LRScheduler | None, ratios: Sequence[float]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, ratios)
    for name in ("base_lrs", "_last_lr", "max_lrs"):
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list) and len(rates) == len(ratios):
            setattr(scheduler, name, [rate * ratio for rate, ratio in zip(rates, ratios)])


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | torch.Tensor | type(None))


def _held(tree: Any) -> Any:
    """Return what a file can hold of a state: functions stay those of the new scheduler."""
    if isinstance(tree, Mapping):
        return {
            key: _held(value)
            for key, value in tree.items()
            if _plain(value) or isinstance(value, Mapping | list | tuple)
        }
    if isinstance(tree, list | tuple):
        return [_held(value) for value in tree]
    return tree if _plain(tree) else None


def _restored(fresh: Any, held: Any) -> Any:
    """Give what a file held the types of a fresh state, and its functions."""
    if isinstance(fresh, Counter):
        return Counter(held)
    if isinstance(fresh, Mapping) and isinstance(held, Mapping):
        found = {key: _restored(fresh.get(key), value) for key, value in held.items()}
        return {**{key: value for key, value in fresh.items() if key not in held}, **found}
    if isinstance(fresh, list | tuple) and isinstance(held, list):
        same = len(fresh) == len(held)
        parts = [_restored(fresh[i] if same else None, value) for i, value in enumerate(held)]
        return type(fresh)(parts)
    return fresh if held is None and fresh is not None and not _plain(fresh) else held
