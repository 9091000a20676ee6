"""Callbacks of a training run, and loggers: CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi.errors import FileError, MissingPackageError
from pyro_nfvi.vae._recipe import TRAINER


class Callback:
    """Listeners of a run; one of your own overrides what it wants to hear.

    Called in the process that leads, between steps. What a callback changes in the VAE is a change
    of the training, and no checkpoint knows what a callback remembers.

    Example:
        >>> from pyro_nfvi.vae import Callback
        >>> class Worst(Callback):
        ...     def step(self, step, numbers):
        ...         self.kl = max(getattr(self, "kl", 0.0), numbers["kl"])
    """

    def begin(self, epoch: int) -> None:
        """Hear that a run begins, or goes on after so many epochs."""

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hear of a step: bound, reconstruction and kl in nats, kl_weight, rate."""

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Hear of an epoch, with the line that the log gets."""

    def end(self) -> None:
        """Hear that a run ends, in whatever way."""


class _EachEpoch(Callback):
    """A function of each epoch's line."""

    def __init__(self, function: Callable[[Mapping[str, Any]], Any]) -> None:
        self.function = function

    def epoch(self, line: Mapping[str, Any]) -> None:
        self.function(line)


def callback_of(given: Callback | Callable[[Mapping[str, Any]], Any]) -> Callback:
    """Return a callback; of a function, one that calls it with each epoch's line."""
    return given if isinstance(given, Callback) else _EachEpoch(given)


def flat(line: Mapping[str, Any]) -> dict[str, float | str]:
    """Return a line of the log with names such as ``valid.elbo``, without its lists.

    Example:
        >>> flat({"epoch": 1, "valid": {"elbo": -3.0}, "rates": [0.1]})
        {'epoch': 1, 'valid.elbo': -3.0}
    """
    found: dict[str, float | str] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": number for inner, number in flat(value).items()}
        elif isinstance(value, int | float | str):
            found[name] = value
    return found


class CSVLogger(Callback):
    """A table with a line for each epoch, which a spreadsheet or pandas reads.

    A run that goes on drops the lines of epochs that its checkpoint does not know.

    Args:
        path: The file.

    Raises:
        FileError: It cannot be written.

    Example:
        >>> import tempfile
        >>> from pyro_nfvi.vae import CSVLogger
        >>> logger = CSVLogger(tempfile.mkdtemp() + "/log.csv")
        >>> logger.begin(0)
        >>> logger.epoch({"epoch": 1, "valid": {"elbo": -3.0}})
        >>> logger.path.read_text().split()
        ['epoch,valid.elbo', '1,-3.0']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines: list[dict[str, Any]] = []

    def begin(self, epoch: int) -> None:
        self._lines = []
        if epoch and self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                self._lines = [one for one in csv.DictReader(file) if int(one["epoch"]) <= epoch]
        self._write()

    def epoch(self, line: Mapping[str, Any]) -> None:
        self._lines.append(flat(line))
        self._write()

    def _write(self) -> None:
        names = list(dict.fromkeys(name for line in self._lines for name in line))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, names, lineterminator="\n")
        if names:
            table.writeheader()
        table.writerows(self._lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"The folder {self.path.parent} cannot be made: {error.strerror}."
            ) from error
        with whole_file(self.path) as draft:
            draft.write_text(text.getvalue(), "utf-8")


class TensorBoardLogger(Callback):
    """Scalars of every epoch, and of every so many steps, for TensorBoard.

    Args:
        folder: Where TensorBoard looks for them.
        every: Steps between two points of the curves by step.

    Raises:
        MissingPackageError: TensorBoard is not installed.

    Example:
        >>> from pyro_nfvi.vae import TensorBoardLogger
        >>> logger = TensorBoardLogger("runs/mine", every=100)  # writes when the run begins
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = TRAINER.log_steps) -> None:
        self.folder, self.every = os.fspath(folder), every
        self._writer: Any = None

    def begin(self, epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "TensorBoard is not installed: pip install tensorboard, or take CSVLogger."
            ) from error
        self._writer = SummaryWriter(self.folder)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        if step % self.every == 0:
            self._add("step", numbers, step)

    def epoch(self, line: Mapping[str, Any]) -> None:
        self._add("epoch", flat(line), int(line["step"]))

    def _add(self, part: str, numbers: Mapping[str, Any], step: int) -> None:
        for name, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{part}/{name}", value, step)

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()
