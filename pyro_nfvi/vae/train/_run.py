"""A training run: its results, and its folder, which is its own while it trains."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from pyro_nfvi._processes.process_group import ProcessGroup
from pyro_nfvi.errors import FileError
from pyro_nfvi.vae._evaluation import Evaluation
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae.train._run_folder import Progress, RunFolder
from pyro_nfvi.vae.train._run_lock import RunLock


@dataclass(frozen=True, repr=False)
class Run:
    """The results of a training run.

    Attributes:
        vae: The VAE with its best parameters; with its last ones where a signal ended the run.
        progress: Where training came to; ``progress.done`` says why it ended.
        evaluation: Numbers on the test images, of the command; None in processes that do not lead,
            and for a run that a signal ended.
        folder: The run's folder, or None.
        history: A line for each epoch, as in ``log.jsonl``: ``valid["elbo"]`` and so on, in nats.
    """

    vae: FlowVAE
    progress: Progress
    evaluation: Evaluation | None = None
    folder: RunFolder | None = None
    history: Sequence[Mapping[str, Any]] = ()

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name} {value}' for name, value in self._figures())})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        figures = _html.table((), self._figures())
        told = "" if self.evaluation is None else f"<pre>{escape(str(self.evaluation))}</pre>"
        return _html.card("Run of a VAE", figures, told)

    def _figures(self) -> list[tuple[str, str]]:
        at = self.progress
        found = [("epochs", str(at.epoch)), ("steps", str(at.step)), ("ended by", repr(at.done))]
        if math.isfinite(at.best):
            found.append(("best validation ELBO", f"{-at.best:.2f} nats (epoch {at.best_epoch})"))
        if self.folder is not None:
            found.append(("folder", str(self.folder.path)))
        return found


@contextmanager
def open_folder(
    out: str | os.PathLike[str], team: ProcessGroup, *, resume: bool, overwrite: bool
) -> Iterator[RunFolder]:
    """The folder of a run, locked by the process that writes into it.

    Args:
        out: The folder.
        team: The processes.
        resume: Go on with the run that it holds.
        overwrite: Remove the run that it holds.

    Raises:
        FileError: Another process has it, or it holds another run.
    """
    folder = RunFolder(out)
    lock, taken = None, None
    if team.leads:
        try:
            lock = RunLock(folder.path)
        except FileError as error:
            taken = error
    try:
        if team.any(taken is not None):
            raise taken or FileError(f"{folder.path} is in use: see the first process's message.")
        _prepare(folder, team, resume=resume, overwrite=overwrite)
        yield folder
    finally:
        if lock is not None:
            lock.release()


def _prepare(folder: RunFolder, team: ProcessGroup, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds another run, and clear what is to be written anew."""
    there = folder.last.exists() or folder.log.exists()
    if there and not (resume or overwrite):
        raise FileError(
            f"{folder.path} holds a run already. Go on with it: resume=True (--resume). Start "
            "anew: overwrite=True (--overwrite), or another folder (--out)."
        )
    team.wait()  # everybody has looked before anybody writes
    if team.leads and not (resume and folder.last.exists()):
        for old in (folder.last, folder.best, folder.log):
            old.unlink(missing_ok=True)
    if team.leads:
        folder.clear_strays()
    team.wait()
